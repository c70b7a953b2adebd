"""A server over real connections, and actions of its clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import uvicorn

from lm_research.serving.connections import Listener, connection_class


class Running:
    """An application that listens on a free port."""

    def __init__(
        self, app: Any, most: int = 64, read_seconds: float = 30.0, longest: float = 120.0, drain_seconds: float = 5.0
    ) -> None:
        """The numbers are those of Connection and Listener."""
        self.server = app.state.server
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        http = connection_class(most, read_seconds, longest)
        self._uvicorn = Listener(uvicorn.Config(app, log_level="warning", http=http), self.server, drain_seconds)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        wait(lambda: self._uvicorn.started)

    def stop(self) -> bool:
        """End it; return whether some request was not answered."""
        self._uvicorn.should_exit = True
        self._thread.join(20)
        return self._uvicorn.interrupted

    def dial(self, sent: bytes) -> socket.socket:
        """A new connection, on which something is sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.sendall(sent)
        return client

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])

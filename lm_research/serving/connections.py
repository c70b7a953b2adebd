"""Limits of connections: how many are open, and how long a request may take to arrive and a response to be sent.

Also the shutdown of a server: active requests may finish within a limited time, then the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import h11
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm_research.errors import DONE, STOPPED_BY_SIGNAL
from lm_research.serving.access import HEADERS
from lm_research.serving.responses import error_body

_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(H11Protocol):
    """A connection with limits.

    Attributes:
      since: time of its last progress [s]: a complete head or body of a request, or a part of a response.
    """

    def __init__(
        self, *args: Any, max_connections: int, read_seconds: float, max_request_seconds: float, **kwargs: Any
    ) -> None:
        """Build a connection.

        Args:
          *args: arguments of uvicorn's protocol.
          max_connections: maximum number of open connections.
          read_seconds: maximum time without progress.
          max_request_seconds: maximum time from a request to the end of its response.
          **kwargs: arguments of uvicorn's protocol.
        """
        super().__init__(*args, **kwargs)
        self.max_connections, self.read_seconds = max_connections, read_seconds
        self.max_request_seconds = max_request_seconds
        self.since = self._request_start = self.loop.time()
        self._progress: Any = None
        self._refused = False

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) <= self.max_connections:
            return
        # Close a connection whose request is incomplete, the oldest first; otherwise one that is kept alive.
        candidates = [
            other
            for other in limited_connections(self.connections)
            if other is not self and other.awaits_client and not other.transport.is_closing()
        ]
        if candidates:
            first = min(candidates, key=lambda other: (other.is_idle and other.cycle is not None, other.since))
            self.connections.discard(first)
            first.transport.abort()
        else:
            self.refuse(503, "Too many connections are open. Try again later.")

    @property
    def awaits_client(self) -> bool:
        """Whether a request has not arrived yet, or not completely."""
        return self.is_idle or self.conn.their_state is h11.SEND_BODY

    @property
    def is_idle(self) -> bool:
        """Whether no request is active."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def refuse(self, status: int, message: str) -> None:
        """Send an error and close the connection."""
        self._refused = True
        body = json.dumps({"error": error_body(status, message)}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close", **HEADERS}
        headers |= {"Retry-After": 1} if status == 503 else {}
        head = [f"HTTP/1.1 {status} {_PHRASES[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    @override
    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    @override
    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.refuse(400, msg)
        else:  # in the middle of a response
            self.transport.abort()

    def check_progress(self, now: float) -> None:
        """End the connection if it has made no progress for too long."""
        cycle, busy = self.cycle, self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        progress = (cycle, busy, self.conn.their_state, unsent, self.transport.is_closing())
        if self._progress is None or progress[0] is not self._progress[0]:
            self._request_start = now
        if progress != self._progress or (busy and not unsent and self.conn.their_state is not h11.SEND_BODY):
            self.since, self._progress = now, progress
        if busy and now - self._request_start > self.max_request_seconds:
            self.transport.abort()
        elif now - self.since > self.read_seconds:
            if self.is_idle and not self.transport.is_closing() and self.conn.trailing_data[0]:
                self.refuse(408, f"The request did not arrive within {self.read_seconds:g} seconds.")
            else:
                self.transport.abort()


def connection_class(max_connections: int, read_seconds: float, max_request_seconds: float) -> type[Connection]:
    """Return a subclass of Connection with these limits, because uvicorn requires a class."""
    limits: dict[str, Any] = {
        "max_connections": max_connections,
        "read_seconds": read_seconds,
        "max_request_seconds": max_request_seconds,
    }

    class Limited(Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **limits, **kwargs)

    return Limited


class Listener(uvicorn.Server):
    """A uvicorn server with limits of connections, which ends within `drain_seconds` after SIGTERM or Ctrl-C.

    Attributes:
      interrupted: whether some request did not finish before the end.
    """

    def __init__(self, config: uvicorn.Config, app_server: Any, drain_seconds: float) -> None:
        """Build a listener; `app_server` is the application's app.Server, whose `end` cancels active requests."""
        super().__init__(config)
        self.app_server, self.drain_seconds, self.interrupted = app_server, drain_seconds, False
        # The last third of the time, at most two seconds, is for cancelling requests; the last quarter of that is a margin.
        self._spare = min(2.0, drain_seconds / 3)
        config.timeout_graceful_shutdown = drain_seconds - 0.4 * self._spare  # type: ignore[assignment]  # asyncio accepts fractions

    @override
    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:
            now = asyncio.get_running_loop().time()
            for connection in limited_connections(self.server_state.connections):
                connection.check_progress(now)
        return await super().on_tick(counter)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown; a second signal ends the process at once.

        uvicorn's method would raise the signal again after the shutdown.
        """
        if self.should_exit:
            self.force_exit = True
            exit_now(STOPPED_BY_SIGNAL)
        self.should_exit = True
        timer = threading.Timer(self.drain_seconds - self._spare / 4, self._exit)
        timer.daemon = True
        timer.start()

    def _exit(self) -> None:
        """End the process at the deadline, since threads may be compiling even after all requests have finished."""
        exit_now(STOPPED_BY_SIGNAL if self.interrupted or self.server_state.tasks else DONE)

    @override
    async def shutdown(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.drain_seconds - self._spare, self._end)
        loop.call_later(self.drain_seconds - self._spare / 2, self._abort)
        await super().shutdown(sockets)

    def _end(self) -> None:
        self.interrupted = self.app_server.end() or self.interrupted

    def _abort(self) -> None:
        for connection in limited_connections(self.server_state.connections):
            connection.transport.abort()


def limited_connections(connections: Iterable[object]) -> list[Connection]:
    """Narrow the type of uvicorn's connections; the server creates no other kind."""
    return [connection for connection in connections if isinstance(connection, Connection)]


def exit_now(code: int) -> None:
    """End the process at once, without waiting for threads: a compiler that runs in one cannot be interrupted."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

"""Connections that can't be held for nothing: how many are open, how long a request may take to come and an answer to go.

And the end of a server: what is under way may end in the time that it is given, then the process does.
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
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm_research.errors import DONE, STOPPED_BY_SIGNAL
from lm_research.serving.access import HEADERS
from lm_research.serving.responses import problem

_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(H11Protocol):
    """A connection that is watched.

    Attributes:
      since: when it last came further [s]: a whole head or body of a request, or a part of an answer.
    """

    def __init__(self, *given: Any, most: int, read_seconds: float, longest: float, **named: Any) -> None:
        """Take the limits of connections.

        Args:
          given, named: of uvicorn's.
          most: open connections.
          read_seconds: that a request's head, then its body, or a part of the answer may take to be sent.
          longest: seconds from a request to the end of its answer.
        """
        super().__init__(*given, **named)
        self.most, self.read_seconds, self.longest = most, read_seconds, longest
        self.since = self._begun = self.loop.time()
        self._place: Any = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) <= self.most:
            return
        # Those whose requests have not come whole make room, the oldest first; then those that may ask for more.
        idle = [
            one for one in watched(self.connections) if one is not self and one.open and not one.transport.is_closing()
        ]
        if idle:
            first = min(idle, key=lambda one: (one.waits and one.cycle is not None, one.since))
            self.connections.discard(first)
            first.transport.abort()
        else:
            self.refuse(503, "Too many connections are open. Try again later.")

    @property
    def open(self) -> bool:
        """Whether the next is the client's turn: a request has not come, or not whole."""
        return self.waits or self.conn.their_state is h11.SEND_BODY

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def refuse(self, status: int, message: str) -> None:
        """Closes the connection with an answer to nothing."""
        self._refused = True
        body = json.dumps({"error": problem(status, message)}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close", **HEADERS}
        headers |= {"Retry-After": 1} if status == 503 else {}
        head = [f"HTTP/1.1 {status} {_PHRASES[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.refuse(400, msg)
        else:  # in the middle of an answer
            self.transport.abort()

    def look(self, now: float) -> None:
        """Ends the connection if it has not come further for too long."""
        begun, busy = self.cycle, self.cycle is not None and not self.cycle.response_complete
        left = self.transport.get_write_buffer_size()
        place = (begun, busy, self.conn.their_state, left, self.transport.is_closing())
        if self._place is None or place[0] is not self._place[0]:
            self._begun = now
        if place != self._place or (busy and not left and self.conn.their_state is not h11.SEND_BODY):
            self.since, self._place = now, place
        if busy and now - self._begun > self.longest:
            self.transport.abort()
        elif now - self.since > self.read_seconds:
            if self.waits and not self.transport.is_closing() and self.conn.trailing_data[0]:
                self.refuse(408, f"The request did not come within {self.read_seconds:g} seconds.")
            else:
                self.transport.abort()


def connection_class(most: int, read_seconds: float, longest: float) -> type[Connection]:
    """Connections with these limits, as uvicorn wants them: a class that it makes objects of."""

    class Limited(Connection):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, most=most, read_seconds=read_seconds, longest=longest, **named)

    return Limited


class Listener(uvicorn.Server):
    """uvicorn's, whose connections are watched, and which ends within `drain_seconds` after SIGTERM or Ctrl-C, whatever is under way.

    Attributes:
      cut: whether some request was not answered before the end.
    """

    def __init__(self, config: uvicorn.Config, app_server: Any, drain_seconds: float) -> None:
        """`app_server`: of the application; its `end` answers all that is under way, and says whether there was anything."""
        super().__init__(config)
        self.app_server, self.drain_seconds, self.cut = app_server, drain_seconds, False
        # A third of the time, but no more than two seconds, is kept for what ends others; a quarter of that for a busy machine.
        self._spare = min(2.0, drain_seconds / 3)
        config.timeout_graceful_shutdown = drain_seconds - 0.4 * self._spare  # type: ignore[assignment]  # asyncio waits for parts of seconds too

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:
            now = asyncio.get_running_loop().time()
            for one in watched(self.server_state.connections):
                one.look(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end; a second signal is the end. uvicorn's own would raise the signal again, which is no mistake to be told of."""
        if self.should_exit:
            self.force_exit = True
            leave(STOPPED_BY_SIGNAL)
        self.should_exit = True
        last = threading.Timer(self.drain_seconds - self._spare / 4, self._leave)
        last.daemon = True
        last.start()

    def _leave(self) -> None:
        """Ends the process when the time is over; threads may be inside of a compiler even if all requests are answered."""
        leave(STOPPED_BY_SIGNAL if self.cut or self.server_state.tasks else DONE)

    async def shutdown(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.drain_seconds - self._spare, self._end)
        loop.call_later(self.drain_seconds - self._spare / 2, self._abort)
        await super().shutdown(sockets)

    def _end(self) -> None:
        self.cut = self.app_server.end() or self.cut

    def _abort(self) -> None:
        for one in watched(self.server_state.connections):
            one.transport.abort()


def watched(connections: Iterable[object]) -> list[Connection]:
    """Those of uvicorn's connections that are of ours: all, since the server makes no others."""
    return [one for one in connections if isinstance(one, Connection)]


def leave(code: int) -> None:
    """Ends the process now. Threads may be inside of a compiler that can't be stopped, and would hold up an orderly end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

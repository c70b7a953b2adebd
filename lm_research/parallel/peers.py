"""Detection of lost processes: after the rendezvous, all processes stay connected to process 0.

When a process dies, its connection closes, so the others learn its number at once, even while they wait in a collective. A process
that hangs or was suspended keeps its connection: jax.distributed misses its heartbeats, and this module identifies the silent process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_PING = 1.0  # seconds between pings
_SILENT = 3.0  # seconds without a ping after which a process counts as silent
# Seconds for the main thread to report the failure itself, by whether a process was killed rather than ended with an error.
_GRACE = {True: 1.0, False: 5.0}
_BYE = b"bye"


class News(NamedTuple):
    """Event that a process ended before the run did: its number, and its exit code, or None if it was killed."""

    number: int
    code: int | None


class Peers:
    """Connections of this process: those of process 0 to all others, or that of another process to process 0.

    Attributes:
      news: the first event, if there has been one.
      patience: seconds of silence that count as an event; infinite once jax.distributed checks heartbeats, which it sends even while
        the interpreter is busy.
    """

    def __init__(self, connections: Mapping[int, socket.socket], on_loss: Callable[[], None]) -> None:
        """Start to listen, in a thread.

        Args:
          connections: connections by process number, as join_rendezvous returns them.
          on_loss: called in that thread shortly after the first event.
        """
        self.news: News | None = None
        self.patience = math.inf
        self._on_loss = on_loss
        self._selector = selectors.DefaultSelector()
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._connections = dict(connections)
        self._closed = False
        for number, connection in connections.items():
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, [number, b""])
        if connections:
            threading.Thread(target=self._listen, daemon=True, name="peers").start()

    def own_host(self) -> str:
        """Return this host's address in its connection to process 0."""
        return str(self._connections[0].getsockname()[0])

    def wait(self, seconds: float) -> News | None:
        """Wait up to a number of seconds for an event, and return it, or None."""
        deadline = time.monotonic() + seconds
        while self.news is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.news

    def silent(self, seconds: float = _SILENT) -> int | None:
        """Return the process that has been silent longest, or None if no silence exceeds a number of seconds."""
        number = min(self._heard, key=self._heard.__getitem__, default=None)
        return number if number is not None and time.monotonic() - self._heard[number] > seconds else None

    def ends(self, number: int, code: int | None) -> None:
        """Notify the others that a process has ended with an exit code. Process 0 may report any process, others only themselves."""
        self._send(b"ends %d %d" % (number, -1 if code is None else code))

    def close(self) -> None:
        """Announce that this process has finished the run, and stop listening."""
        self._send(_BYE)
        self._closed = True

    def _send(self, line: bytes) -> None:
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):  # the process is gone, or does not read
                connection.send(line + b"\n")

    def _listen(self) -> None:
        pinged = 0.0
        while not self._closed and self.news is None:
            if time.monotonic() - pinged >= _PING:
                pinged = time.monotonic()
                self._send(b"")
            for key, _ in self._selector.select(_PING):
                self._hear(key)
            late = self.silent(self.patience)
            if late is not None and self.news is None:
                self.news = News(late, None)
        if self.news is None or self._closed:
            return
        if 0 not in self._connections:
            self.ends(*self.news)
        time.sleep(_GRACE[self.news.code is None])
        if not self._closed:
            self._on_loss()

    def _hear(self, key: selectors.SelectorKey) -> None:
        number, rest = key.data
        try:
            received = self._connections[number].recv(4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        *lines, key.data[1] = (rest + received).split(b"\n")
        self._heard[number] = time.monotonic()
        for words in filter(None, (line.split() for line in lines)):
            if words == [_BYE]:
                received = b""
                del self._connections[number]
            elif words[0] == b"ends" and self.news is None:
                self.news = News(int(words[1]), None if int(words[2]) < 0 else int(words[2]))
        if not received:
            self._selector.unregister(key.fileobj)
            self._heard.pop(number)
            if number in self._connections and self.news is None:
                self.news = News(number, None)


@contextlib.contextmanager
def heartbeats_end(end: Callable[[], None]) -> Iterator[None]:
    """Make clients of jax.distributed created inside call `end` when a process is lost, instead of aborting with a C++ message.

    jaxlib has a callback for this, but (in 0.10) it cannot convert the callback's status argument to Python, which ends in
    std::terminate. So `end` is also installed as the terminate handler. If either is missing, nothing changes.
    """
    try:
        from jax._src import distributed

        library = distributed._jax  # type: ignore[attr-defined]  # private, so missing in jax's types
        factory = library.get_distributed_runtime_client
        supported = "missed_heartbeat_callback" in factory.__doc__ and _on_terminate(end)
    except (ImportError, AttributeError, OSError, TypeError):
        supported = False
    if not supported:
        yield
        return
    library.get_distributed_runtime_client = functools.partial(factory, missed_heartbeat_callback=lambda *status: end())
    try:
        yield
    finally:
        library.get_distributed_runtime_client = factory


_handlers: list[object] = []  # keeps them alive, which C++ does not


def _on_terminate(end: Callable[[], None]) -> bool:
    """Install a terminate handler that calls `end` when the callback's argument cannot be converted (std::bad_cast).

    Raises:
      AttributeError: the C++ library lacks a function.
      OSError: jaxlib does not use libstdc++.
    """
    library = ctypes.CDLL("libstdc++.so.6", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    kind_of, set_handler = library.__cxa_current_exception_type, library._ZSt13set_terminatePFvvE
    kind_of.restype = set_handler.restype = ctypes.c_void_p

    def handle() -> None:
        kind = kind_of()  # a std::type_info: a table's address, then that of its name
        if kind and b"bad_cast" in (ctypes.cast(kind, ctypes.POINTER(ctypes.c_char_p))[1] or b""):
            end()
        ctypes.CFUNCTYPE(None)(before)()

    handler = ctypes.CFUNCTYPE(None)(handle)
    before = set_handler(handler)
    _handlers.append(handler)
    return True

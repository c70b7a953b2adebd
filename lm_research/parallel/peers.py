"""Which process of a run is lost: those that met in the roll call stay connected through process 0.

A process that dies closes its connection, so that the others know its number at once, even while they wait in a collective. One
that hangs or was stopped keeps it: jax.distributed misses its heartbeats, and here it is seen who has been silent.
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

_PING = 1.0  # seconds between signs of life
_SILENT = 3.0  # seconds without one after which it is said of a process that it does not answer
_GRACE = {
    True: 1.0,
    False: 5.0,
}  # seconds for what the main thread has to say itself: a process was lost; one told its error
_BYE = b"bye"


class News(NamedTuple):
    """A process has ended before the run was over: its number and exit code, None of one that told none because it was killed."""

    number: int
    code: int | None


class Peers:
    """The connections of this process: of process 0 to all others, of the others to process 0.

    Attributes:
      news: what has been heard of first, if anything has.
      patience: seconds of silence that are news; none are once jax.distributed listens to heartbeats, which a busy interpreter sends too.
    """

    def __init__(self, connections: Mapping[int, socket.socket], on_loss: Callable[[], None]) -> None:
        """Begins to listen, in a thread.

        Args:
          connections: by process number, as join_rendezvous returns them.
          on_loss: called in that thread some time after the first news.
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

    def wait(self, seconds: float) -> News | None:
        """The news, for which it waits so long."""
        deadline = time.monotonic() + seconds
        while self.news is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.news

    def silent(self, seconds: float = _SILENT) -> int | None:
        """The process that has been silent longest, if for so long."""
        number = min(self._heard, key=self._heard.__getitem__, default=None)
        return number if number is not None and time.monotonic() - self._heard[number] > seconds else None

    def ends(self, number: int, code: int | None) -> None:
        """Tells the others that a process (this one, or of process 0 any) has ended, and with which exit code."""
        self._send(b"ends %d %d" % (number, -1 if code is None else code))

    def close(self) -> None:
        """The run is over for this process."""
        self._send(_BYE)
        self._closed = True

    def _send(self, line: bytes) -> None:
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):  # it is gone, or reads nothing
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
    """Clients of jax.distributed made inside call `end` when a process is lost, instead of ending this one with words of C++.

    jaxlib has a callback for it, but (0.10) no Python form of the status that it gives: the attempt ends in std::terminate, whose
    handler can be set, so `end` is that as well. Where either is missing all stays as it was.
    """
    try:
        from jax._src import distributed

        library = distributed._jax  # type: ignore[attr-defined]  # private, and so not told in jax's types
        factory = library.get_distributed_runtime_client
        known = "missed_heartbeat_callback" in factory.__doc__ and _on_terminate(end)
    except (ImportError, AttributeError, OSError, TypeError):
        known = False
    if not known:
        yield
        return
    library.get_distributed_runtime_client = functools.partial(factory, missed_heartbeat_callback=lambda *status: end())
    try:
        yield
    finally:
        library.get_distributed_runtime_client = factory


_handlers: list[object] = []  # C++ keeps none of them alive


def _on_terminate(end: Callable[[], None]) -> bool:
    """Lets the C++ library that jaxlib uses call `end` where such a callback cannot be; AttributeError or OSError without one."""
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

"""A signal while there is nothing to save: one line, and the exit code that says "the same command goes on".

Python runs signal handlers between two instructions of the main thread, which may be inside a library for minutes (it learns
a vocabulary, or compiles). So the handler raises `Left` (see `raising`), which clears away what is half made; and a thread, which the
signal wakes as well, ends the process if the main thread has not done so GRACE seconds later.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from lm_research.common import streams  # noqa: F401 (before a file gets the number of a standard stream)
from lm_research.errors import STOPPED_BY_SIGNAL

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GOES_ON = "goes on from there"
_exit = os._exit  # a config file that is run may have no other way out, see `locate_errors`
GRACE = 1.0  # seconds


class Interrupted(BaseException):
    """A signal asked the command to end. Whoever catches it to clear away raises it again."""


class _Told:
    """What the line says: which signal came, if one has, and when it came in words."""

    number: int | None = None
    heard = False  # by the thread, before the main thread does
    when = ""
    then = ""
    written = False
    raises = False  # whether somebody catches Left


def watch(when: str = "before it was done", then: str = "does the rest") -> None:
    """From now on SIGTERM and Ctrl-C end this process, unless another handler takes their place.

    `when`, `then`: what the line says of the moment, such as "before the first step", and of what the same command does.
    """
    if signal.getsignal(SIGNALS[0]) is _handle:
        set_message(when, then)
    else:
        _start(when, then)


def set_message(when: str, then: str = _GOES_ON) -> None:
    """Changes what the line says of the moment."""
    _Told.when, _Told.then = when, then


@contextlib.contextmanager
def raising_on_signal() -> Iterator[None]:
    """Inside, such a signal raises `Left`; elsewhere it ends the process then and there."""
    before, _Told.raises = _Told.raises, True
    try:
        yield
    finally:
        _Told.raises = before


@contextlib.contextmanager
def watching(when: str) -> Iterator[None]:
    """The same as `watch` for as long as the context lasts."""
    restore = _start(when, _GOES_ON)
    try:
        yield
    finally:
        restore()


def signal_received() -> bool:
    """Whether such a signal has come."""
    return _Told.heard or _Told.number is not None


def exit_now(number: int = signal.SIGTERM) -> NoReturn:
    """Ends the process at once, as if this signal had come to it."""
    _Told.number = number
    write_message()
    _exit(STOPPED_BY_SIGNAL)


def write_message() -> None:
    """Writes the line, once, if a signal came."""
    if not _Told.written and _Told.number is not None:
        _Told.written = True
        name = signal.Signals(_Told.number).name
        line = f"stopped by {name} {_Told.when}; the same command {_Told.then}.\n"
        with contextlib.suppress(OSError):  # nobody may listen any more
            os.write(1, line.encode())


def _start(when: str, then: str) -> Callable[[], None]:
    _Told.number, _Told.heard, _Told.when, _Told.then, _Told.written = None, False, when, then, False
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    handlers = {number: signal.signal(number, _handle) for number in SIGNALS}
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(ours, pythons), daemon=True).start()
    atexit.register(_at_the_end)

    def restore() -> None:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        pythons.close()  # ends the thread

    return restore


def _ignore(lost: Any, otherwise: Callable[[Any], Any] = sys.unraisablehook) -> None:
    """Of a `Left` that was raised where nothing can be (a destructor, say) nothing is shown: the thread sees to the end."""
    if not isinstance(lost.exc_value, Interrupted):
        otherwise(lost)


sys.unraisablehook = _ignore


def _in_child() -> None:
    """What a process forks would wake this process's thread by signals of its own."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# A signal that came to the child before it is set apart would be taken for one to the parent, and then be lost: it waits.
os.register_at_fork(
    before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
    after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
    after_in_child=_in_child,
)


def _at_the_end() -> None:
    """The command has its exit code: a signal changes nothing any more. Python would bring the default handlers back."""
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    if not _Told.raises or _Told.number is not None:  # a second signal waits for nothing
        exit_now(number)
    _Told.number = number
    raise Interrupted(f"signal {number}")


def _wait(ours: socket.socket, pythons: socket.socket) -> None:
    """Ends the process some time after a signal that is ours, unless the main thread does. Keeps Python's end open meanwhile."""
    with ours:
        while received := ours.recv(1):
            number = received[0]
            if number not in SIGNALS or signal.getsignal(number) is not _handle:
                continue
            _Told.heard = True
            time.sleep(GRACE)
            if signal.getsignal(number) is _handle:  # nobody else took over
                exit_now(number)

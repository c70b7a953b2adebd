"""Handling SIGTERM and Ctrl-C while there is nothing to save: one line of output, and exit code 75.

Python runs signal handlers between two instructions of the main thread, which may be inside a library for minutes (training a
tokenizer, or compiling). Therefore the handler raises `Interrupted` (see `raising_on_signal`) so that temporary files are removed, and a
thread, which the signal also wakes, ends the process if the main thread has not done so after GRACE seconds.
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

from lm_research.common import streams  # noqa: F401 (before another file gets the descriptor of a standard stream)
from lm_research.errors import STOPPED_BY_SIGNAL

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_exit = os._exit  # config files run with os._exit replaced, see `locate_errors`
GRACE = 1.0  # seconds


class Interrupted(BaseException):
    """Raised when a signal requests the end of the command; code that catches it for cleanup must raise it again."""


class _State:
    """The signal that was received, if any, and the message about it."""

    number: int | None = None
    received = False  # by the thread, before the main thread handles it
    when = ""
    written = False
    raises = False  # whether Interrupted is caught


def watch(when: str = "before it finished") -> None:
    """Make SIGTERM and Ctrl-C end this process from now on, unless another handler replaces this one.

    Args:
      when: the time in the message, such as "before the first step".
    """
    if signal.getsignal(SIGNALS[0]) is _handle:
        set_message(when)
    else:
        _start(when)


def set_message(when: str) -> None:
    """Change the time in the message."""
    _State.when = when


@contextlib.contextmanager
def raising_on_signal() -> Iterator[None]:
    """Make a signal raise `Interrupted` inside the context; outside, it ends the process immediately."""
    before, _State.raises = _State.raises, True
    try:
        yield
    finally:
        _State.raises = before


@contextlib.contextmanager
def watching(when: str) -> Iterator[None]:
    """Apply `watch` inside the context."""
    restore = _start(when)
    try:
        yield
    finally:
        restore()


def signal_received() -> bool:
    """Whether a signal has been received."""
    return _State.received or _State.number is not None


def exit_now(number: int = signal.SIGTERM) -> NoReturn:
    """End the process immediately, as if it had received this signal."""
    _State.number = number
    write_message()
    _exit(STOPPED_BY_SIGNAL)


def write_message() -> None:
    """Write the message, once, if a signal was received."""
    if not _State.written and _State.number is not None:
        _State.written = True
        name = signal.Signals(_State.number).name
        line = f"stopped by {name} {_State.when}; run the same command again to continue.\n"
        with contextlib.suppress(OSError):  # standard output may be closed
            os.write(1, line.encode())


def _start(when: str) -> Callable[[], None]:
    """Install the handlers and the thread; return a function that removes them."""
    _State.number, _State.received, _State.when, _State.written = None, False, when, False
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


def _ignore(unraisable: Any, default_hook: Callable[[Any], Any] = sys.unraisablehook) -> None:
    """Show nothing for an `Interrupted` raised where errors are discarded (in a destructor): the thread ends the process."""
    if not isinstance(unraisable.exc_value, Interrupted):
        default_hook(unraisable)


sys.unraisablehook = _ignore


def _in_child() -> None:
    """Detach a forked child, whose signals would otherwise wake the parent's thread."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# Signals are blocked during a fork: one that reached the child before `_in_child` would be attributed to the parent and then lost.
os.register_at_fork(
    before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
    after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
    after_in_child=_in_child,
)


def _at_the_end() -> None:
    """Ignore signals once the command has its exit code; otherwise Python would restore the default handlers."""
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    if not _State.raises or _State.number is not None:  # a second signal ends the process immediately
        exit_now(number)
    _State.number = number
    raise Interrupted(f"signal {number}")


def _wait(ours: socket.socket, pythons: socket.socket) -> None:
    """End the process GRACE seconds after a handled signal, unless the main thread does; keeps `pythons` open meanwhile."""
    with ours:
        while received := ours.recv(1):
            number = received[0]
            if number not in SIGNALS or signal.getsignal(number) is not _handle:
                continue
            _State.received = True
            time.sleep(GRACE)
            if signal.getsignal(number) is _handle:  # not replaced by another handler
                exit_now(number)

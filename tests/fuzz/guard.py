"""Limits on the time and memory of one input. A hang or a crash ends the process with a traceback of every thread."""

from __future__ import annotations

import contextlib
import faulthandler
import pathlib
import time
from collections.abc import Iterator

SECONDS = 20.0  # a busy machine compiles for some of it
MEMORY = 512 * 2**20  # bytes beyond what the process had
_HANG = 120.0

_STATUS, _RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def _peak() -> int:
    """The peak memory of this process since `_forget`, in bytes; 0 where the system does not report it."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024


def _forget() -> None:
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Fail unless the body ends within SECONDS and needs less than MEMORY."""
    _forget()
    before, start = _peak(), time.monotonic()
    faulthandler.dump_traceback_later(_HANG, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds, grown = time.monotonic() - start, _peak() - before
    assert seconds < SECONDS, f"it took {seconds:.1f} s"
    assert grown < MEMORY, f"it took {grown / 2**20:.0f} MiB"

"""Standard streams that are closed, unread or on a full disk: a command continues without them.

Importing this module opens /dev/null in place of a closed standard stream. Otherwise the next file that is opened would get its
descriptor, and messages would be written into that file.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from typing_extensions import override

for _number in (0, 1, 2):
    try:
        os.fstat(_number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
sys.stdin = sys.stdin or open(0, closefd=False)
sys.stdout = sys.stdout or open(1, "w", closefd=False)
sys.stderr = sys.stderr or open(2, "w", closefd=False)


class Lossy(io.TextIOWrapper):
    """A text stream that discards its output after the first write error.

    Attributes:
      failure: that error.
    """

    failure: OSError | None = None

    def __init__(self, number: int, like: TextIO) -> None:
        """Write to file descriptor `number` with the encoding and buffering of the stream `like`."""
        super().__init__(
            open(number, "wb", closefd=False),
            encoding=like.encoding,
            errors=like.errors,
            line_buffering=isinstance(like, io.TextIOWrapper) and like.line_buffering,
            write_through=isinstance(like, io.TextIOWrapper) and like.write_through,
        )

    @override
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    @override
    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.failure = error
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.fileno())  # discards later output, also at the end of the process
        os.close(devnull)


def make_lossy() -> None:
    """Make standard output and standard error discard their output after a write error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    sys.stdout, sys.stderr = Lossy(1, sys.stdout), Lossy(2, sys.stderr)


def failure() -> OSError | None:
    """Return the error because of which standard output is incomplete, None if it is complete."""
    sys.stdout.flush()
    return sys.stdout.failure if isinstance(sys.stdout, Lossy) else None

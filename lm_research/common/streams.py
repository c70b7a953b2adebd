"""Standard streams that nobody reads, that lie on a full disk, or that are closed: a command goes on without them.

Importing this opens /dev/null in place of a standard stream that is closed: else the next file to be opened would get its number, and
what is meant for people would be written into it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

for _number in (0, 1, 2):
    try:
        os.fstat(_number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
sys.stdin = sys.stdin or open(0, closefd=False)
sys.stdout = sys.stdout or open(1, "w", closefd=False)
sys.stderr = sys.stderr or open(2, "w", closefd=False)


class Lossy(io.TextIOWrapper):
    """A stream that is written to for as long as what is written is taken.

    Attributes:
      failure: why it is not any more.
    """

    failure: OSError | None = None

    def __init__(self, number: int, like: TextIO) -> None:
        """`number`: of the file; `like`: the stream that it is in place of, which stays as it is."""
        super().__init__(
            open(number, "wb", closefd=False),
            encoding=like.encoding,
            errors=like.errors,
            line_buffering=isinstance(like, io.TextIOWrapper) and like.line_buffering,
            write_through=isinstance(like, io.TextIOWrapper) and like.write_through,
        )

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.failure = error
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, self.fileno())  # takes what is still to be written, at the end of the process too
        os.close(void)


def make_lossy() -> None:
    """Makes this process's output streams lossy."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    sys.stdout, sys.stderr = Lossy(1, sys.stdout), Lossy(2, sys.stderr)


def failure() -> OSError | None:
    """Why standard output was not taken to the end, if it was not."""
    sys.stdout.flush()
    return sys.stdout.failure if isinstance(sys.stdout, Lossy) else None

"""Row lengths of tasks."""

from __future__ import annotations

_MIN_LENGTH = 32


def padded_length(longest: int) -> int:
    """Round a row length up to 32 times a power of two, so that few lengths are compiled."""
    width = _MIN_LENGTH
    while width < longest:
        width *= 2
    return width

"""How long the rows of a task are."""

from __future__ import annotations

_NARROWEST = 32


def rounded(longest: int) -> int:
    """The length that rows are padded to: 32, or twice, four times, ... as much, so that few lengths are compiled."""
    width = _NARROWEST
    while width < longest:
        width *= 2
    return width

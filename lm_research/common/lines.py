"""Splitting text into lines that end only at a line feed, or at a carriage return and a line feed.

Python's `str.splitlines` and text files also end lines at a lone carriage return, U+2028, U+0085, form feeds and more, which occur
inside texts.
"""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """Split a text into lines without their line ends; a final line end starts no further line."""
    *whole, rest = text.split("\n")
    return [line.removesuffix("\r") for line in whole] + [rest] * bool(rest)


def end_at_line_feed(line: str) -> str:
    """Replace a carriage return and line feed at the end of a line by a line feed."""
    return line[:-2] + "\n" if line.endswith("\r\n") else line

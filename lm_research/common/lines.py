"""What a line is, for all that is read line by line: it ends at a line feed, or a carriage return and a line feed, and nowhere else.

Texts hold the other characters at which Python's `str.splitlines` and its text files end lines: a lone carriage return, U+2028, U+0085,
form feeds and more. They are a part of the line.
"""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """Lines without their ends; nothing follows the last end."""
    *whole, rest = text.split("\n")
    return [line.removesuffix("\r") for line in whole] + [rest] * bool(rest)


def end_at_line_feed(line: str) -> str:
    """A line that ends at a line feed alone, if it has an end."""
    return line[:-2] + "\n" if line.endswith("\r\n") else line

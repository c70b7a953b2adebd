"""Zorro: accuracy of RoBERTa-base from the published scores of all 92,000 sentences."""

from __future__ import annotations

import pathlib

from experiments.results.row import COMPUTED, Figure, Row, public
from lm_research.data.sources.files import find_files
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.evaluation.scorers import MinimalPairScorer

FOLDER = "eval/zorro/RoBERTa-base_Liu2019/0/saves/babyberta"
PARADIGMS = {"irregular-verb": 99.90, "argument_structure-dropped_argument": 52.90}


def pairs(path: str) -> list[dict[str, float]]:
    """Read the pairs of a file "sentence value": the first of two lines is ungrammatical, and a lower value is better."""
    (file,) = find_files(path)
    values = [float(line.rsplit(maxsplit=1)[1]) for _, line in read_lines(file, Problems("stop"))]
    return [
        {"good_nats": -good, "bad_nats": -bad, "good_tokens": 1, "bad_tokens": 1}
        for bad, good in zip(values[::2], values[1::2], strict=True)
    ]


def measure(folder: pathlib.Path) -> list[Figure]:
    """Average the accuracy over paradigms, and over phenomena."""
    accuracy = {}
    for path in sorted(public(FOLDER).glob("probing_*_results_*.txt.gz")):
        name = path.name.removeprefix("probing_").partition("_results_")[0]
        accuracy[name] = 100 * MinimalPairScorer(pairs(str(path)), ()).score_all()["accuracy"]
    phenomena: dict[str, list[float]] = {}
    for name, value in accuracy.items():
        phenomena.setdefault(name.partition("-")[0], []).append(value)
    by_phenomenon = [sum(values) / len(values) for values in phenomena.values()]
    return [
        Figure(f"mean of {len(accuracy)} paradigms, %", sum(accuracy.values()) / len(accuracy), 82.49, 0.005, COMPUTED),
        Figure(f"mean of {len(phenomena)} phenomena, %", sum(by_phenomenon) / len(phenomena), 84.61, 0.005, COMPUTED),
        *(Figure(f"{name}, %", accuracy[name], value, 0.005, COMPUTED) for name, value in PARADIGMS.items()),
    ]


ROW = Row(
    title="Zorro: RoBERTa-base from its published sentence scores",
    source="RoBERTa-base_Liu2019 of phueb/Zorro at 687ba43: the mean cross-entropy of one forward pass without masks",
    why="Equal: the scorer of minimal pairs compares the same values.",
    measure=measure,
)

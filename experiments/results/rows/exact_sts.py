"""Semantic textual similarity with all-MiniLM-L6-v2, by lm_research.evaluate."""

from __future__ import annotations

import json
import pathlib

from experiments.results.minilm import model
from experiments.results.row import COMPUTED, Figure, Row
from lm_research import evaluate
from lm_research.errors import DataError

SUITE = pathlib.Path(__file__).resolve().parents[1] / "sts.py"
# Task -> Spearman's correlation times 100, and pairs.
PUBLISHED = {"stsb_test": (82.03, 1379), "sts2013": (80.60, 1500), "sts2015": (85.39, 3000), "sts2016": (78.99, 1186)}


def measure(folder: pathlib.Path) -> list[Figure]:
    """Evaluate the suite and read the scores."""
    arguments = ["--model", str(model()), "--suite", str(SUITE), "--output", str(folder / "sts"), "--batch_size", "64"]
    if code := evaluate.main([*arguments, "--resamples", "2"]):
        raise DataError(f"lm_research.evaluate ended with exit code {code}; its message is above.")
    tasks = json.loads((folder / "sts" / "results.json").read_text())["tasks"]
    return [
        figure
        for name, (score, pairs) in PUBLISHED.items()
        for figure in (
            Figure(f"{name}: Spearman x 100", 100 * tasks[name]["scores"]["spearman"]["mean"], score, 0.01, COMPUTED),
            Figure(f"{name}: pairs", tasks[name]["records"], pairs, 0, COMPUTED),
        )
    ]


ROW = Row(
    title="STS-B and STS 2013, 2015, 2016 with all-MiniLM-L6-v2",
    source="sentence-transformers' model in PyTorch on the same files; from memory, MTEB reports the same four values",
    why="Equal: mean pooling over the same tokens (at most 256), cosines, and all pairs of a year in one correlation.",
    measure=measure,
)

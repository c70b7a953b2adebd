"""The averages of BLiMP's published table of four models, by the scorer of minimal pairs."""

from __future__ import annotations

import gzip
import json
import pathlib

from experiments.results.row import Figure, Row, public
from lm_research.evaluation.scorers import MinimalPairScorer

MODELS = ("ngram", "lstm", "txl", "gpt2")
PAIRS = 1000  # of each paradigm


def pairs(accuracy: float) -> list[dict[str, float]]:
    """Make the pairs of a paradigm with a published accuracy: the first ones correct."""
    correct = round(PAIRS * accuracy)
    return [
        {"good_nats": -1.0, "bad_nats": -2.0 if i < correct else -0.5, "good_tokens": 1, "bad_tokens": 1}
        for i in range(PAIRS)
    ]


def measure(folder: pathlib.Path) -> list[Figure]:
    """Average the 67 paradigms, and the paradigms of each of 12 phenomena; the table has both averages as well."""
    with gzip.open(public("eval/blimp/raw_results/summary/models_summary.jsonl.gz"), "rt") as stream:
        rows = [json.loads(line) for line in stream]
    paradigms = [row for row in rows if row["UID"] != "overall"]
    averages = {row["linguistics_term"]: row for row in rows if row["UID"] == "overall"}
    figures = []
    for term in sorted(averages, key=lambda name: name != "overall"):
        chosen = [row for row in paradigms if term in ("overall", row["linguistics_term"])]
        for model in MODELS:
            scorer = MinimalPairScorer([pair for row in chosen for pair in pairs(float(row[model]))], ())
            ours = scorer.score_all()["accuracy"]
            figures.append(
                Figure(f"{model}, {term} ({len(chosen)} paradigms)", ours, float(averages[term][model]), 5e-5)
            )
    return figures


ROW = Row(
    title="Averages of BLiMP's published table of four models",
    source="models_summary.jsonl of alexwarstadt/blimp at 3e56b06: 67 paradigms and 13 averages, in 80 lines",
    why="""Equal, over all paradigms and in each of 12 phenomena. A mean over all 80 lines (0.610, 0.701, 0.700 and 0.833) would count the
averages as paradigms.""",
    measure=measure,
)

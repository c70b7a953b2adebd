"""StereoSet's scores from the sentence scores that its authors published."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np

from experiments.results.row import Figure, Row, public
from lm_research.metrics import MetricInputs

# File of sentence scores -> model, and its language modeling and stereotype score for each domain, from predictions.txt and a script.
SCORES = {
    "predictions_gpt2_ModelNSP_GPT2LM.json.gz": (
        "GPT-2",
        {"race": (962, 89.7567072075023, 60.35000089116578), "religion": (79, 88.45977011494251, 58.02298850574713)},
    ),
    "predictions_bert-base-cased_BertNextSentence_BertLM.json.gz": (
        "BERT-base-cased",
        {"race": (962, 83.8241, 56.2963), "religion": (79, 82.1609, 56.2759)},
    ),
}


def _read(name: str) -> object:
    with gzip.open(public("eval/stereoset") / name) as stream:
        return json.load(stream)


def scored(domain: str, predictions: dict) -> MetricInputs:
    """Pair the sentences of a domain with their scores."""
    score = {one["id"]: one["score"] for one in predictions["intrasentence"]}
    columns: dict[str, list] = {"stereotype": [], "anti_stereotype": [], "unrelated": [], "terms": []}
    for example in _read(f"{domain}_test.json.gz"):
        for sentence in example["sentences"]:
            columns[sentence["gold_label"].replace("-", "_")].append(score[sentence["id"]])
        columns["terms"].append(example["target"])
    return MetricInputs("stereotypes", **{name: np.array(values) for name, values in columns.items()})


def measure(folder: pathlib.Path) -> list[Figure]:
    """Compute the scores of two models on two domains."""
    figures = []
    for file, (model, domains) in SCORES.items():
        predictions = _read(f"predictions/{file}")
        for domain, (count, language_modeling, stereotype) in domains.items():
            inputs = scored(domain, predictions)
            found = inputs.score(["language_modeling_score", "stereotype_score"])
            figures += [
                Figure(
                    f"{model}, {domain}: language modeling score",
                    found["language_modeling_score"],
                    language_modeling,
                    5e-5,
                ),
                Figure(f"{model}, {domain}: stereotype score", found["stereotype_score"], stereotype, 5e-5),
                Figure(f"{model}, {domain}: examples", len(inputs.columns["terms"]), count, 0),
            ]
    return figures


ROW = Row(
    title="StereoSet's scores from its published sentence scores",
    source="predictions.txt and predictions/ of moinnadeem/StereoSet at ead7d08, within sentences",
    why="Equal: the metrics are averages over target terms, then over their mean, of exact comparisons of the same scores.",
    measure=measure,
)

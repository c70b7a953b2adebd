"""ROUGE-1 of every sentence of SciTLDR's test part against the first summary, as the data set publishes it."""

from __future__ import annotations

import pathlib

import numpy as np

from experiments.results.row import Figure, Row, public
from lm_research.config import resolve
from lm_research.metrics import MetricInputs
from lm_research.tasks.records import read_records


def distinct_words(text: str) -> str:
    """Return the distinct words of a text as the published scores count them, in hexadecimal so that case matters.

    They divide a text at full stops and then at white space, and white space after the last full stop counts as one more word.
    """
    sentences = [" ".join(piece.split()) for piece in text.split(".") if piece]
    words = [word for sentence in sentences for word in sentence.split(" ")]
    return " ".join(dict.fromkeys(f"w{word.encode().hex()}" for word in words))


def measure(folder: pathlib.Path) -> list[Figure]:
    """Score each sentence as the data set does."""
    pairs: list[tuple[str, str]] = []
    published: list[float] = []
    for record in read_records(str(public("generate/scitldr/SciTLDR-A/test.jsonl.gz")), resolve({})):
        if len(record.fields["source"]) == len(record.fields["rouge_scores"]):
            pairs += [(sentence, record.fields["target"][0]) for sentence in record.fields["source"]]
            published += record.fields["rouge_scores"]
    sides = [[distinct_words(text) for text in side] for side in zip(*pairs, strict=True)]
    inputs = MetricInputs("texts", predictions=sides[0], references=sides[1], rouge_tokenizer="whitespace")
    differences_N = np.abs(np.asarray(inputs.values("rouge1")) - np.array(published))
    return [
        Figure("fraction of equal scores", float((differences_N < 1e-6).mean()), 1.0, 0.0),
        Figure("largest difference of a score", float(differences_N.max()), 0.0, 1e-6),
        Figure(
            "mean ROUGE-1 of all sentences", float(np.mean(inputs.values("rouge1"))), float(np.mean(published)), 1e-6
        ),
    ]


ROW = Row(
    title="ROUGE-1 of SciTLDR's sentences",
    source="rouge_scores of SciTLDR-A, allenai/scitldr at 5ccad9c: F1 of each sentence and the first summary",
    why="""Equal, for the words that the data set counts: each distinct word once, in its case, without full stops. This library's default
(rouge-score: Porter's stems, every occurrence) gives other values for the same texts. 44 documents with another number of scores than
sentences are left out. The published scores add 1e-8 to a denominator.""",
    measure=measure,
)

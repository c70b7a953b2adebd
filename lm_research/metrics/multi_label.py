"""Any number of labels a record: which of C labels [N, C] it has, bool."""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric
from lm_research.metrics.single_label import ratio


@metric("exact_match", higher_is_better=True, kind="multi_label", is_mean=True)
def exact_match(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """All labels of a record right."""
    return (predictions == references).all(-1)


@metric("precision", higher_is_better=True, kind="multi_label")
def precision(predictions: np.ndarray, references: np.ndarray) -> float:
    """Over all decisions; so are recall and f1_micro."""
    return float(ratio((predictions & references).sum(), predictions.sum()))


@metric("recall", higher_is_better=True, kind="multi_label")
def recall(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(ratio((predictions & references).sum(), references.sum()))


@metric("f1_micro", higher_is_better=True, kind="multi_label")
def f1_micro(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(ratio(2 * (predictions & references).sum(), predictions.sum() + references.sum()))


@metric("f1_macro", higher_is_better=True, kind="multi_label")
def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean over labels."""
    return ratio(2 * (predictions & references).sum(0), predictions.sum(0) + references.sum(0)).mean()

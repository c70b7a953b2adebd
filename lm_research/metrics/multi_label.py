"""Multi-label classification: predictions and references are bool [N, C], the labels of each example."""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric
from lm_research.metrics.single_label import ratio


@metric("exact_match", higher_is_better=True, kind="multi_label", is_mean=True)
def exact_match(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Whether all labels of an example are correct."""
    return (predictions == references).all(-1)


@metric("precision", higher_is_better=True, kind="multi_label")
def precision(predictions: np.ndarray, references: np.ndarray) -> float:
    """Precision over all decisions (micro-averaged)."""
    return float(ratio((predictions & references).sum(), predictions.sum()))


@metric("recall", higher_is_better=True, kind="multi_label")
def recall(predictions: np.ndarray, references: np.ndarray) -> float:
    """Recall over all decisions (micro-averaged)."""
    return float(ratio((predictions & references).sum(), references.sum()))


@metric("f1_micro", higher_is_better=True, kind="multi_label")
def f1_micro(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 over all decisions."""
    return float(ratio(2 * (predictions & references).sum(), predictions.sum() + references.sum()))


@metric("f1_macro", higher_is_better=True, kind="multi_label")
def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean of the labels' F1."""
    return ratio(2 * (predictions & references).sum(0), predictions.sum(0) + references.sum(0)).mean()

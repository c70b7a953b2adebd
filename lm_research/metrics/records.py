"""Predictions of any kind: equality with the reference, or scores per example that the task computes itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_research.metrics.base import metric


@metric("accuracy", higher_is_better=True, kind="records", is_mean=True)
def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
    """Whether each prediction equals its reference."""
    return np.array([predicted == true for predicted, true in zip(predictions, references, strict=True)])


@metric("exact_match", higher_is_better=True, kind="records", is_mean=True)
def mean_exact_match(exact_match: Sequence[float]) -> np.ndarray:
    """The task's exact match of each example."""
    return np.asarray(exact_match, float)


@metric("f1", higher_is_better=True, kind="records", is_mean=True)
def mean_f1(f1: Sequence[float]) -> np.ndarray:
    """The task's F1 of each example."""
    return np.asarray(f1, float)

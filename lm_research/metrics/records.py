"""Predictions of any kind: right or wrong, or as a task has scored them itself record by record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_research.metrics.base import metric


@metric("accuracy", higher_is_better=True, kind="records", is_mean=True)
def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
    return np.array([own == true for own, true in zip(predictions, references, strict=True)])


@metric("exact_match", higher_is_better=True, kind="records", is_mean=True)
def mean_exact_match(exact_match: Sequence[float]) -> np.ndarray:
    return np.asarray(exact_match, float)


@metric("f1", higher_is_better=True, kind="records", is_mean=True)
def mean_f1(f1: Sequence[float]) -> np.ndarray:
    return np.asarray(f1, float)

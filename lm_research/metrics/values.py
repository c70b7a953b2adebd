"""Regression metrics; for several values per example, their means over the values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lm_research.metrics.base import metric


@metric("pearson", higher_is_better=True, kind="values")
def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation; 0 if either side is constant."""
    return _over_columns(_correlation, predictions, references)


@metric("spearman", higher_is_better=True, kind="values")
def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman rank correlation; 0 if either side is constant."""
    from scipy import stats

    return _over_columns(lambda a, b: _correlation(stats.rankdata(a), stats.rankdata(b)), predictions, references)


@metric("squared_error", higher_is_better=False, kind="values", is_mean=True)
def squared_error(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Mean squared error of each example [N]."""
    errors = np.square(np.asarray(predictions, np.float64) - np.asarray(references, np.float64))
    return errors.reshape(len(errors), -1).mean(1)


def _over_columns(
    compare: Callable[[np.ndarray, np.ndarray], float], predictions: np.ndarray, references: np.ndarray
) -> float:
    a, b = (np.asarray(x, np.float64) for x in (predictions, references))
    if a.ndim == 1:
        return compare(a, b)
    return float(np.mean([compare(*pair) for pair in zip(a.T, b.T, strict=True)]))


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    if len(a_N) < 2 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return 0.0
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    return float(a_N @ b_N / np.sqrt(a_N @ a_N) / np.sqrt(b_N @ b_N))

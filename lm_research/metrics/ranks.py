"""Retrieval: the rank, from 1, of the right text among all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lm_research.metrics.base import metric


@metric("mrr_at_10", higher_is_better=True, kind="ranks", is_mean=True)
def mrr_at_10(ranks: np.ndarray) -> np.ndarray:
    """1 / rank, 0 from the eleventh on (as MS MARCO has it, Bajaj et al. 2016)."""
    return np.where(ranks <= 10, 1.0 / ranks, 0.0)


@metric("recall_at_1", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_1(ranks: np.ndarray) -> np.ndarray:
    """Whether a right candidate is the first, or among the first five or ten."""
    return ranks <= 1


@metric("recall_at_5", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_5(ranks: np.ndarray) -> np.ndarray:
    return ranks <= 5


@metric("recall_at_10", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_10(ranks: np.ndarray) -> np.ndarray:
    return ranks <= 10


def first_ranks(
    queries_QD: np.ndarray,
    candidates_KD: np.ndarray,
    right_Q: Sequence[np.ndarray],
    chunk: int = 512,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a_QD, b_KD: a_QD @ b_KD.T,
) -> np.ndarray:
    """Of each query the rank [Q], from 1, of the best of its right candidates (numbers from 0) by product, or as `compare` says.

    A wrong candidate that is as near as the right one counts as nearer: a model that makes all texts equal finds nothing.
    """
    ranks_Q = np.empty(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), chunk):
        scores_QK = compare(queries_QD[start : start + chunk], candidates_KD)
        for scores_K, (number, right) in zip(scores_QK, enumerate(right_Q[start : start + chunk], start), strict=True):
            best = scores_K[right].max()
            ranks_Q[number] = 1 + (scores_K >= best).sum() - (scores_K[right] >= best).sum()
    return ranks_Q

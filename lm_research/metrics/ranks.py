"""Retrieval metrics from the rank, from 1, of the correct text among all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lm_research.metrics.base import metric


@metric("mrr_at_10", higher_is_better=True, kind="ranks", is_mean=True)
def mrr_at_10(ranks: np.ndarray) -> np.ndarray:
    """Reciprocal rank, 0 beyond rank 10 (MS MARCO, Bajaj et al. 2016)."""
    return np.where(ranks <= 10, 1.0 / ranks, 0.0)


@metric("recall_at_1", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_1(ranks: np.ndarray) -> np.ndarray:
    """Whether the first candidate is correct."""
    return ranks <= 1


@metric("recall_at_5", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_5(ranks: np.ndarray) -> np.ndarray:
    """Whether one of the first five candidates is correct."""
    return ranks <= 5


@metric("recall_at_10", higher_is_better=True, kind="ranks", is_mean=True)
def recall_at_10(ranks: np.ndarray) -> np.ndarray:
    """Whether one of the first ten candidates is correct."""
    return ranks <= 10


def first_ranks(
    queries_QD: np.ndarray,
    candidates_KD: np.ndarray,
    right_Q: Sequence[np.ndarray],
    chunk: int = 512,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a_QD, b_KD: a_QD @ b_KD.T,
) -> np.ndarray:
    """Return the rank [Q], from 1, of the best correct candidate of each query.

    A wrong candidate with the same score counts as better, so a model that embeds all texts alike retrieves nothing.

    Args:
      queries_QD: embeddings of the queries.
      candidates_KD: embeddings of the candidates.
      right_Q: indices of each query's correct candidates.
      chunk: number of queries that are scored at a time.
      compare: gives the scores [Q, K] of queries and candidates; inner products by default.
    """
    ranks_Q = np.empty(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), chunk):
        scores_QK = compare(queries_QD[start : start + chunk], candidates_KD)
        for scores_K, (number, right) in zip(scores_QK, enumerate(right_Q[start : start + chunk], start), strict=True):
            best = scores_K[right].max()
            ranks_Q[number] = 1 + (scores_K >= best).sum() - (scores_K[right] >= best).sum()
    return ranks_Q

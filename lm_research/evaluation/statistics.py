"""Confidence intervals of metrics and significance of differences, by resampling the examples that all models share.

Legend: N examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm_research.evaluation.scorers import Scorer

CONFIDENCE = 0.95
_SEED = 0


def samples(scorer: Scorer, resamples: int) -> Iterator[np.ndarray]:
    """Yield R bootstrap samples: indices of N examples drawn with replacement.

    The samples are the same in each call, so that models are compared on equal samples. If examples are grouped, whole
    groups are drawn, as many as there are (a cluster bootstrap).
    """
    rng = np.random.default_rng(_SEED)
    members = _members(scorer)
    for _ in range(resamples):
        drawn = rng.integers(0, len(members), len(members))
        yield drawn if scorer.group_N is None else np.concatenate([members[number] for number in drawn])


def _members(scorer: Scorer) -> Sequence[Any]:
    """Return the examples of each sampling unit, which is an example or a group."""
    if scorer.group_N is None:
        return range(scorer.num_records)
    order_N = np.argsort(scorer.group_N, kind="stable")
    return np.split(order_N, np.cumsum(np.bincount(scorer.group_N))[:-1])


def resampled(scorers: Sequence[Scorer], resamples: int) -> dict[str, np.ndarray]:
    """Return the bootstrap distribution [R] of each metric's mean over models (Efron 1979); {} without resamples."""
    means: dict[str, list[float]] = {}
    for index_N in samples(scorers[0], resamples):
        scores = [scorer.score(index_N) for scorer in scorers]
        for name in scores[0]:
            means.setdefault(name, []).append(float(np.mean([score[name] for score in scores])))
    return {name: np.array(values) for name, values in means.items()}


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of a bootstrap distribution."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def summarize(scorers: Sequence[Scorer], resamples: int) -> dict[str, dict[str, Any]]:
    """Return statistics of each metric over models (seeds).

    Args:
      scorers: one scorer per model.
      resamples: number of bootstrap samples; 0 computes no interval.

    Returns:
      For each metric: mean, std (None for one model), the interval low and high, and by_model, each model's value.
    """
    by_model = [scorer.score_all() for scorer in scorers]
    distributions = resampled(scorers, resamples)
    summary = {}
    for name in by_model[0]:
        values = [scores[name] for scores in by_model]
        low, high = interval(distributions[name]) if distributions else (None, None)
        summary[name] = {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": low,
            "high": high,
            "by_model": values,
        }
    return summary


def mcnemar(correct_a_N: np.ndarray, correct_b_N: np.ndarray) -> tuple[float, int, int]:
    """Run McNemar's exact test (McNemar 1947).

    If both models are equally good, an example that exactly one of them predicts correctly is A's or B's with equal
    probability.

    Args:
      correct_a_N: whether model A is correct on each example.
      correct_b_N: the same for model B.

    Returns:
      (p-value, number of examples that only A predicts correctly, number that only B does).
    """
    from scipy import stats

    only_a = int((correct_a_N.astype(bool) & ~correct_b_N.astype(bool)).sum())
    only_b = int((~correct_a_N.astype(bool) & correct_b_N.astype(bool)).sum())
    if only_a + only_b == 0:
        return 1.0, 0, 0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue), only_a, only_b


def permutation(a: Sequence[Scorer], b: Sequence[Scorer], metric: str, resamples: int) -> float:
    """Return the p-value of a paired permutation test (Noreen 1989).

    It is the fraction of permutations whose difference is at least as large as the observed one. A permutation swaps the
    predictions of A and B for each example with probability 1/2; all models of a side, and all examples of a group, are
    swapped together.

    Args:
      a: scorers of the models of side A.
      b: scorers of the models of side B.
      metric: the metric to compare.
      resamples: number of permutations.
    """
    rng, size = np.random.default_rng(_SEED), a[0].num_records
    unit_N = np.arange(size) if a[0].group_N is None else a[0].group_N

    def draw_swaps() -> np.ndarray:
        return rng.integers(0, 2, unit_N.max() + 1)[unit_N]

    if all(metric in scorer.means for scorer in (*a, *b)):  # for a mean, a swap changes the sign of a difference
        difference_N = np.mean([x.means[metric] for x in b], axis=0) - np.mean([x.means[metric] for x in a], axis=0)
        differences_R = np.array([difference_N @ (1 - 2 * draw_swaps()) for _ in range(resamples)]) / size
        observed = float(difference_N.mean())
    else:
        joined = [x.concatenated(y) for x, y in zip(a, b, strict=True)]
        index_N, differences_R = np.arange(size), np.zeros(resamples)

        def difference(swap_N: np.ndarray) -> float:
            first, second = index_N + size * swap_N, index_N + size * (1 - swap_N)
            return float(np.mean([both.score(second)[metric] - both.score(first)[metric] for both in joined]))

        observed = difference(np.zeros(size, int))
        for number in range(resamples):
            differences_R[number] = difference(draw_swaps())
    extreme = int((np.abs(differences_R) >= abs(observed) - 1e-12).sum())
    return (extreme + 1) / (resamples + 1)  # the observed difference counts as well: Phipson and Smyth 2010


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests so that the probability of any false positive is that of one test (Holm 1979)."""
    order, adjusted, highest = np.argsort(values), [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted

"""How sure a metric is, and a difference between two models: by resampling records, which all models share.

Legend: N records, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm_research.evaluation.scorers import Scorer

CONFIDENCE = 0.95
_SEED = 0


def samples(scorer: Scorer, resamples: int) -> Iterator[np.ndarray]:
    """Numbers of N records drawn with replacement, R times; always the same ones, so that models are compared on equal samples.

    Records that belong together are drawn together: as many groups as there are, with all their records (a cluster bootstrap).
    """
    draw = np.random.default_rng(_SEED)
    members = _members(scorer)
    for _ in range(resamples):
        drawn = draw.integers(0, len(members), len(members))
        yield drawn if scorer.together_N is None else np.concatenate([members[number] for number in drawn])


def _members(scorer: Scorer) -> Sequence[Any]:
    """The records of each unit that is drawn."""
    if scorer.together_N is None:
        return range(scorer.num_records)
    order_N = np.argsort(scorer.together_N, kind="stable")
    return np.split(order_N, np.cumsum(np.bincount(scorer.together_N))[:-1])


def resampled(scorers: Sequence[Scorer], resamples: int) -> dict[str, np.ndarray]:
    """Each metric's mean over models [R] on the samples of `samples`: the bootstrap distribution (Efron 1979)."""
    found = [
        {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
        for index_N in samples(scorers[0], resamples)
        if (scores := [scorer.score(index_N) for scorer in scorers])
    ]
    return {name: np.array([one[name] for one in found]) for name in found[0]} if found else {}


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a bootstrap distribution."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def summarize(scorers: Sequence[Scorer], resamples: int) -> dict[str, dict[str, Any]]:
    """By metric, the mean over models (seeds), their standard deviation (None of one model), interval, and each model's value."""
    own = [scorer.all() for scorer in scorers]
    spread = resampled(scorers, resamples)
    found = {}
    for name in own[0]:
        values = [scores[name] for scores in own]
        low, high = interval(spread[name]) if spread else (None, None)
        found[name] = {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": low,
            "high": high,
            "by_model": values,
        }
    return found


def mcnemar(right_a_N: np.ndarray, right_b_N: np.ndarray) -> tuple[float, int, int]:
    """(p, records only A has right, records only B has right): McNemar's test in its exact form.

    Where both models are as good, each record that only one of them has right is A's or B's like the toss of a coin (McNemar 1947).
    """
    from scipy import stats

    only_a = int((right_a_N.astype(bool) & ~right_b_N.astype(bool)).sum())
    only_b = int((~right_a_N.astype(bool) & right_b_N.astype(bool)).sum())
    if only_a + only_b == 0:
        return 1.0, 0, 0
    return float(stats.binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue), only_a, only_b


def permutation(a: Sequence[Scorer], b: Sequence[Scorer], metric: str, resamples: int) -> float:
    """The p-value of a paired permutation test (Noreen 1989).

    It is how often a difference as large as that between A and B comes about when each record's predictions are given to the one or the
    other by the toss of a coin; all of a side's models change places together, and so do records that belong together.
    """
    draw, size = np.random.default_rng(_SEED), a[0].num_records
    unit_N = np.arange(size) if a[0].together_N is None else a[0].together_N

    def toss() -> np.ndarray:
        return draw.integers(0, 2, unit_N.max() + 1)[unit_N]

    if all(
        metric in scorer.means for scorer in (*a, *b)
    ):  # a mean: the coin turns the sign of each record's difference
        gap_N = np.mean([x.means[metric] for x in b], axis=0) - np.mean([x.means[metric] for x in a], axis=0)
        gaps = np.array([gap_N @ (1 - 2 * toss()) for _ in range(resamples)]) / size
        observed = float(gap_N.mean())
    else:
        joined = [x.joined(y) for x, y in zip(a, b, strict=True)]
        index_N, gaps = np.arange(size), np.zeros(resamples)

        def gap(swap_N: np.ndarray) -> float:
            own, other = index_N + size * swap_N, index_N + size * (1 - swap_N)
            return float(np.mean([one.score(other)[metric] - one.score(own)[metric] for one in joined]))

        observed = gap(np.zeros(size, int))
        for number in range(resamples):
            gaps[number] = gap(toss())
    extreme = int((np.abs(gaps) >= abs(observed) - 1e-12).sum())
    return (extreme + 1) / (resamples + 1)  # the observed one counts: Phipson and Smyth 2010


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that the chance of any false alarm stays what it is for one (Holm 1979)."""
    order, adjusted, highest = np.argsort(values, kind="stable"), [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted

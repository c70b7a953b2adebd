"""Intervals and tests against arithmetic and against counting all cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lm_research.evaluation import scorers, statistics
from lm_research.evaluation.scorers import RegressionScorer, Scorer, SingleLabelScorer


def labeled(right: Sequence[int]) -> Scorer:
    """Predictions of two classes, right or wrong as given; the label is always b."""
    rows = [{"label": "b", "logits": [0.0, 1.0] if one else [1.0, 0.0]} for one in right]
    return SingleLabelScorer(rows, ["a", "b"])


def valued(predictions: Sequence[float], labels: Sequence[float]) -> Scorer:
    return RegressionScorer([{"label": b, "prediction": a} for a, b in zip(predictions, labels, strict=True)], [])


def test_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    """400 of 500: standard error sqrt(0.8 * 0.2 / 500) = 0.0179, 95% within 1.96 of them."""
    found = statistics.summarize([labeled([1] * 400 + [0] * 100)], 2000)["accuracy"]
    assert found["mean"] == pytest.approx(0.8) and found["std"] is None
    assert found["low"] == pytest.approx(0.8 - 1.96 * 0.0179, abs=0.005)
    assert found["high"] == pytest.approx(0.8 + 1.96 * 0.0179, abs=0.005)


def test_seeds() -> None:
    found = statistics.summarize([labeled([1, 1, 1, 0]), labeled([1, 0, 0, 0])], 10)["accuracy"]
    assert found["mean"] == pytest.approx(0.5)
    assert found["std"] == pytest.approx(np.sqrt(0.25**2 + 0.25**2))  # divided by n - 1 = 1
    assert found["by_model"] == [0.75, 0.25]


def test_mcnemar_by_hand() -> None:
    """Only A is right on 1 record, only B on 9: 2 (C(10, 0) + C(10, 1)) / 2^10 = 22 / 1024."""
    a, b = np.array([1] * 6 + [0] * 9 + [1]), np.array([1] * 6 + [1] * 9 + [0])
    assert statistics.mcnemar(a, b) == (pytest.approx(22 / 1024), 1, 9)
    assert statistics.mcnemar(a, a) == (1.0, 0, 0)
    # One example is A's or B's with certainty; of two, one each is the most likely outcome.
    assert statistics.mcnemar(np.array([1, 1]), np.array([1, 0])) == (1.0, 1, 0)
    assert statistics.mcnemar(np.array([1, 0]), np.array([0, 1])) == (1.0, 1, 1)


def every_swap(a: Sequence[float], b: Sequence[float], labels: Sequence[float], metric: str) -> float:
    """The p-value by enumerating all ways to exchange the predictions of records."""

    def gap(x, y):
        return valued(y, labels).score_all()[metric] - valued(x, labels).score_all()[metric]

    observed, extreme = gap(a, b), 0
    for swaps in itertools.product((0, 1), repeat=len(a)):
        x = [q if swap else p for p, q, swap in zip(a, b, swaps, strict=True)]
        y = [p if swap else q for p, q, swap in zip(a, b, swaps, strict=True)]
        extreme += abs(gap(x, y)) >= abs(observed) - 1e-12
    return extreme / 2 ** len(a)


@pytest.mark.parametrize("metric", ["squared_error", "pearson"])  # a mean over records, and none
def test_permutation_by_enumeration(metric: str) -> None:
    draw = np.random.default_rng(1)
    labels = draw.normal(size=7)
    a, b = labels + draw.normal(size=7), labels + 0.4 * draw.normal(size=7)
    expected = every_swap(a, b, labels, metric)
    found = statistics.permutation([valued(a, labels)], [valued(b, labels)], metric, 1000)
    assert found == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 1000) + 1 / 1000)


def test_false_positives_are_as_rare_as_the_level() -> None:
    """Two equally good models: p is below 0.1 in about a tenth of 200 trials (binomial: within 20 +- 4 standard deviations)."""
    draw, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        a, b = (labeled(draw.random(40) < 0.7) for _ in range(2))
        alarms += statistics.permutation([a], [b], "accuracy", 200) < 0.1
    assert alarms <= 20 + 4 * np.sqrt(200 * 0.1 * 0.9)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.04: times 3, 2 and 1, and never decreasing."""
    assert statistics.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([0.02, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])  # equal ones stay equal


def test_equal_samples_for_all_models() -> None:
    """So the spread of a difference is that of paired records: zero between a model and itself."""
    values: Any = [statistics.resampled([labeled([1, 0, 1, 1, 0])], 50)["accuracy"] for _ in range(2)]
    assert (values[0] == values[1]).all() and np.ptp(values[0]) > 0


class OfGroups(scorers.GroupedLabelScorer):
    """One metric of examples beside those of groups: the others take most of the time."""

    names = ("accuracy",)


def together(
    logits: list[list[float]], labels: list[int], groups: list[str], credits: list[float]
) -> scorers.GroupedLabelScorer:
    rows = [
        {"logits": one, "label": str(label), "together": group, "credit": credit}
        for one, label, group, credit in zip(logits, labels, groups, credits, strict=True)
    ]
    return OfGroups(rows, ("0", "1"))


def test_records_of_a_group_are_drawn_together() -> None:
    """By hand: group a is entirely right, b is not; b's likeliest record is wrong and worth a quarter. A sample of group b twice has b's values."""
    one = together([[0, 2], [1, 0], [0, 1], [0, 3]], [1, 0, 1, 0], ["a", "a", "b", "b"], [1.0, 0.0, 1.0, 0.25])
    found = one.score_all()
    assert (found["group_accuracy"], found["choice_accuracy"], found["choice_credit"]) == (0.5, 0.5, 0.625)
    assert found["accuracy"] == 0.75
    twice = one.score(np.array([2, 3, 2, 3]))
    assert (twice["group_accuracy"], twice["choice_accuracy"], twice["choice_credit"]) == (0.0, 0.0, 0.25)
    for index in statistics.samples(one, 20):
        counts = np.bincount(index, minlength=4)
        assert counts[0] == counts[1] and counts[2] == counts[3] and counts[0] + counts[2] == 2
    # Of two groups a mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: its standard deviation is sqrt(1/8).
    spread = statistics.resampled([one], 4000)["group_accuracy"]
    assert spread.std() == pytest.approx(8**-0.5, rel=0.05) and set(spread) == {0.0, 0.5, 1.0}


def test_all_examples_and_groups_are_drawn_equally_often() -> None:
    """1,000 times each in 1,000 samples, within five standard deviations; examples of a group equally often. As many units as there are."""
    grouped = together([[0, 1]] * 6, [1] * 6, ["a", "b", "c", "b", "c", "c"], [1.0] * 6)
    for scorer, units in ((labeled([1, 0, 1, 1]), [[0], [1], [2], [3]]), (grouped, [[0], [1, 3], [2, 4, 5]])):
        size = sum(map(len, units))
        counts = np.array([np.bincount(index, minlength=size) for index in statistics.samples(scorer, 1000)])
        for unit in units:
            assert (counts[:, unit] == counts[:, unit[:1]]).all()
            assert abs(counts[:, unit[0]].sum() - 1000) < 5 * 1000**0.5
        assert (counts[:, [unit[0] for unit in units]].sum(1) == len(units)).all()


def test_groups_change_sides_as_a_whole() -> None:
    """Eight groups of two records; B chooses rightly in all, A in none: the gap is as large only if all or none change sides, 2 of 2^8."""
    groups = [str(number // 2) for number in range(16)]
    labels = [1, 0] * 8
    good, bad = [[0.0, 1.0], [1.0, 0.0]] * 8, [[1.0, 0.0], [0.0, 1.0]] * 8
    credits = [1.0, 0.0] * 8
    a, b = together(bad, labels, groups, credits), together(good, labels, groups, credits)
    joined = a.concatenated(b)
    assert (
        joined.score(np.arange(16))["choice_credit"] == 0.0 and joined.score(np.arange(16, 32))["choice_credit"] == 1.0
    )
    p = statistics.permutation([a], [b], "choice_credit", 4000)
    assert p == pytest.approx(2 / 256, abs=0.005)


def test_interval_by_hand() -> None:
    """95% of the values 0 to 1000: the 2.5th percentile is 25, the 97.5th 975."""
    assert statistics.interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_the_observed_difference_counts_as_one_of_the_samples(metric: str) -> None:
    """Phipson and Smyth 2010. None of the random flips of 60 coins repeats the observation, so p is 1 / (R + 1); without samples it is 1."""
    a, b = labeled([0] * 60), labeled([1] * 60)
    assert statistics.permutation([a], [b], metric, 9) == 1 / 10
    assert statistics.permutation([a], [b], metric, 0) == 1.0
    assert statistics.permutation([a], [a], metric, 9) == 1.0


def test_a_swap_changes_the_sign_of_a_difference() -> None:
    """So that of a single example has the same size in every permutation."""
    assert statistics.permutation([valued([1.0], [0.0])], [valued([2.0], [0.0])], "squared_error", 20) == 1.0


@pytest.mark.parametrize("metric", ["squared_error", "pearson"])
def test_seeds_of_a_side_are_exchanged_together(metric: str) -> None:
    """Two equal models a side are one; a third of another seed on each side changes the mean gap, and so p."""
    draw = np.random.default_rng(1)
    labels = draw.normal(size=9)
    a, b, c, d = (valued(labels + scale * draw.normal(size=9), labels) for scale in (1.0, 0.4, 2.0, 0.1))
    one = statistics.permutation([a], [b], metric, 100)
    assert statistics.permutation([a, a], [b, b], metric, 100) == one
    assert statistics.permutation([a, c], [b, d], metric, 100) != one


def test_without_resamples_there_is_no_interval() -> None:
    found = statistics.summarize([labeled([1, 0, 1, 1])], 0)["accuracy"]
    assert (found["mean"], found["std"], found["low"], found["high"]) == (0.75, None, None, None)

"""The search for spans against listing and sorting all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest

from lm_research.tokenizers.windows import best_spans, without_space


@pytest.mark.parametrize(("combine", "one"), [(np.add, operator.add), (np.multiply, operator.mul)])
@pytest.mark.parametrize("longest", [1, 3, 50])
def test_they_match_a_sorted_list_of_all_spans(combine: np.ufunc, one: Callable, longest: int) -> None:
    rng = np.random.default_rng(0)
    start, end = rng.integers(0, 4, (2, 9)).astype(float)  # so that many tie
    spans = [(a, b, one(start[a], end[b])) for a in range(9) for b in range(a, min(9, a + longest))]
    assert list(best_spans(start, end, longest, combine)) == sorted(spans, key=lambda span: -span[2])
    assert list(best_spans(start[:0], end[:0], longest, combine)) == []


def test_white_space_before_a_span() -> None:
    assert [without_space("a  b", start, 4) for start in range(4)] == [0, 3, 3, 3]
    assert without_space("a  ", 1, 3) == 3

"""Rounding up, against sizes listed by hand."""

from __future__ import annotations

import pytest

from lm_research.common.rounding import bucket_size, ceil_div, few_sizes, next_power_of_two, round_up


def test_multiples() -> None:
    assert [ceil_div(number, 4) for number in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
    assert [round_up(number, 128) for number in (0, 1, 128, 129, 30522)] == [
        0,
        128,
        128,
        256,
        30592,
    ]  # 30592 = 239 x 128


@pytest.mark.parametrize(
    ("number", "power", "bucket"),
    [
        (0, 1, 1),
        (1, 1, 1),
        (2, 2, 2),
        (3, 4, 3),
        (4, 4, 4),
        (5, 8, 6),
        (6, 8, 6),
        (7, 8, 8),
        (9, 16, 12),
        (13, 16, 16),
        (17, 32, 24),
        (25, 32, 32),
        (97, 128, 128),
        (96, 128, 96),
        (1025, 2048, 1536),
    ],
)
def test_sizes(number: int, power: int, bucket: int) -> None:
    assert (next_power_of_two(number), bucket_size(number)) == (power, bucket)
    assert bucket_size(number, 16) == max(16, bucket)


def test_buckets_are_few_and_never_too_small() -> None:
    sizes = [bucket_size(number) for number in range(1, 5000)]
    assert (
        all(size >= number for number, size in enumerate(sizes, 1)) and len(set(sizes)) == 25
    )  # 1, 2, 3, 4, 6, ... 6144


@pytest.mark.parametrize(
    ("needed", "cost", "sizes"),
    [
        ([6, 6, 6, 8], 0, [6, 8]),  # 6.5 on average instead of 8
        ([6, 6, 6, 8], 0.7, [6, 8]),  # which saves 6 / 8 of a batch
        ([6, 6, 6, 8], 0.8, [8]),
        ([19, 20, 20, 20], 0, [20]),
        ([4, 6, 6, 6, 6, 8], 0, [6, 8]),  # 6 for five: 38 / 6 on average
        ([10, 10, 11], 0, [11]),  # 10.3 would save a sixteenth
        ([3], 0, [3]),
    ],
)
def test_one_size_or_two(needed: list[int], cost: float, sizes: list[int]) -> None:
    assert few_sizes(needed, cost) == sizes

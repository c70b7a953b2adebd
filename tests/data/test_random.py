"""Randomness as a function: published values, bijections, uniformity, independence."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings

import numpy as np
import pytest

from lm_research.data.stateless_rng import GOLDEN, example_keys, mix, permute, uniform

# First five outputs of SplitMix64 seeded with 1234567, as listed at rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
SPLITMIX_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def draw(key: int, number: int) -> int:
    """Draw `number` of the stream that starts at `key`, in Python integers from the definition in the module's docstring."""
    z = (key + (number + 1) * GOLDEN) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_mix_is_the_published_finalizer() -> None:
    """The sequential generator adds GOLDEN to its state, then mixes it: output n is mix(seed + (n + 1) * GOLDEN)."""
    states = np.array([(1234567 + (n + 1) * GOLDEN) % 2**64 for n in range(5)], dtype=np.uint64)
    assert mix(states).tolist() == SPLITMIX_1234567


def test_uniform_is_the_splitmix_stream_of_its_key() -> None:
    got = uniform(np.array([1234567], dtype=np.uint64), 5)
    assert got.tolist() == [[(value >> 11) / 2**53 for value in SPLITMIX_1234567]]


def test_keys_do_not_change_between_versions() -> None:
    """Computed with Python integers from the definition in the module's docstring."""
    word = int.from_bytes(hashlib.sha256(b"mask").digest()[:8], "little")
    for seed in (5, -1, 2**63 + 1):
        expected = [draw(draw(draw(draw(seed % 2**64, 0), word), 2), index) for index in (0, 1, 10**12)]
        assert example_keys(seed, "mask", 2, np.array([0, 1, 10**12])).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 5, 7, 12, 1000, 2**40 + 1])
def test_orders_do_not_change_between_versions(size: int) -> None:
    """With Python integers: 18 rounds over (row, column) of a table just large enough, again while the place is outside."""
    word = int.from_bytes(hashlib.sha256(b"order").digest()[:8], "little")
    key = draw(draw(draw(3, 0), word), 4)
    rows = next(n for n in itertools.count(math.isqrt(size)) if n * n >= size)
    columns = -(-size // rows)

    def once(place: int) -> int:
        row, column = divmod(place, columns)
        for number in range(0, 18, 2):
            row = (row + draw(draw(key, number), column) % rows) % rows
            column = (column + draw(draw(key, number + 1), row) % columns) % columns
        return row * columns + column

    index = [n for n in (*range(6), size // 2, size - 1) if n < size]
    expected = []
    for place in map(once, index):
        while place >= size:
            place = once(place)
        expected.append(place)
    assert permute(np.array(index), size, 3, "order", 4).tolist() == expected


def test_start_skips_ahead_in_the_same_stream() -> None:
    keys = example_keys(0, "mask", 0, np.arange(7))
    assert np.array_equal(uniform(keys, 10)[:, 4:], uniform(keys, 6, start=4))


def test_a_batch_equals_its_rows() -> None:
    """No state: any subset in any order gives the same numbers."""
    index, epoch = np.array([3, 0, 8]), np.array([1, 0, 1])
    whole = uniform(example_keys(1, "mask", np.repeat([0, 1], 10), np.tile(np.arange(10), 2)), 4)
    assert np.array_equal(uniform(example_keys(1, "mask", epoch, index), 4), whole[[13, 0, 18]])


@pytest.mark.parametrize("axis", ["index", "epoch", "draw", "seed", "purpose"])
def test_neighbors_are_uniform_and_uncorrelated(axis: str) -> None:
    """With n = 40,000: mean 1/2 and variance 1/12 within 5 standard errors, correlation within 5 / sqrt(n)."""
    n = 40_000
    count = np.arange(n)
    if axis == "index":
        values = uniform(example_keys(0, "x", 0, count), 1)[:, 0]
    elif axis == "epoch":
        values = uniform(example_keys(0, "x", count, 0), 1)[:, 0]
    elif axis == "draw":
        values = uniform(example_keys(0, "x", 0, 0), n)[0]
    elif axis == "seed":
        values = np.concatenate([uniform(example_keys(seed, "x", 0, 0), 1)[0] for seed in range(2000)])
    else:
        values = np.concatenate([uniform(example_keys(0, str(word), 0, 0), 1)[0] for word in range(2000)])
    n = len(values)
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(values.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)  # Var((u - 1/2)**2) = 1/80 - 1/144 = 1/180
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / math.sqrt(n)


def test_seeds_purposes_and_signs_differ() -> None:
    keys = [example_keys(s, p, e, 0)[0] for s in (-1, 0, 1, 2**31, 2**64 + 5) for p in ("a", "b") for e in (0, 1)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 1000, 1024, 4097, 65536, 100_003])
def test_permute_is_a_bijection(size: int) -> None:
    shuffled = permute(np.arange(size), size, 3, "order", 1)
    assert shuffled.dtype == np.int64
    assert np.array_equal(np.sort(shuffled), np.arange(size))


@pytest.mark.parametrize("size", [10**12, 2**61 + 1])
def test_permute_of_huge_sets(size: int) -> None:
    index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    shuffled = permute(index, size, 0, "order", 4)
    assert shuffled.min() >= 0 and shuffled.max() < size
    assert len(np.unique(shuffled)) == len(index)
    assert abs((shuffled / size).mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(index))


def test_epochs_differ_within_one_call() -> None:
    index, epoch = np.tile(np.arange(50), 3), np.repeat([0, 1, 7], 50)
    together = permute(index, 50, 0, "order", epoch).reshape(3, 50)
    for row, number in zip(together, (0, 1, 7), strict=True):
        assert np.array_equal(row, permute(np.arange(50), 50, 0, "order", number))
    assert len({tuple(row) for row in together.tolist()}) == 3


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_is_equally_likely(size: int) -> None:
    """Chi-square over all size! orders; its mean is size! - 1, its variance twice that; 5 deviations allowed."""
    epochs = 200 * math.factorial(size)
    index, epoch = np.tile(np.arange(size), epochs), np.repeat(np.arange(epochs), size)
    orders = permute(index, size, 7, "order", epoch).reshape(epochs, size)
    place = {order: i for i, order in enumerate(itertools.permutations(range(size)))}
    counts = np.bincount([place[tuple(order)] for order in orders.tolist()], minlength=len(place))
    chi_square, freedom = ((counts - 200) ** 2 / 200).sum(), len(place) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_no_overflow_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniform(example_keys(2**63, "x", 0, 5), 3)
        permute(np.array([1]), 2, 2**63, "x", 0)
        mix(np.uint64(2**64 - 1))

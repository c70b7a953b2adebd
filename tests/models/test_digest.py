"""Digests distinguish arrays by every bit, by position, by name; and are the same wherever an array is stored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.digest import digest_arrays, digest_of, finish_digests, join_digests, start_digests

DTYPES = [np.float32, np.int32, np.uint32, np.float16, jnp.bfloat16, np.int8, np.uint8, np.bool_]
KEYS = ((0x9E3779B9, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def one(x: np.ndarray) -> str:
    (digest,) = digest_arrays({"x": jnp.asarray(x)}).values()
    return digest


def by_hand(x: np.ndarray) -> str:
    """The definition in NumPy for 4-byte types: sums of mixed (bits ^ hash of the position), modulo 2**32."""
    words, result = x.ravel().view(np.uint32).astype(np.uint64), ""
    place, mask = np.arange(x.size, dtype=np.uint64), np.uint64(2**32 - 1)
    for high, low in KEYS:
        h = place ^ np.uint64(high)
        h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x7FEB352D)) & mask
        h = (((h ^ (h >> np.uint64(15))) + np.uint64(low)) & mask) * np.uint64(0x846CA68B) & mask
        h ^= h >> np.uint64(16)
        mixed = ((words ^ h) * np.uint64(high | 1)) & mask
        mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(low | 1)) & mask
        result += f"{int((mixed ^ (mixed >> np.uint64(13))).sum()) % 2**32:08x}"
    return result


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 3, 5), (0,)], ids=str)
def test_definition(shape: tuple) -> None:
    """Stored digests must mean the same in later versions."""
    x = np.asarray(np.random.default_rng(0).normal(size=shape), np.float32)
    assert one(x) == by_hand(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_flipped_bit_changes_the_digest(dtype: type) -> None:
    rng = np.random.default_rng(1)
    size, width = 37, np.dtype(dtype).itemsize
    original = rng.integers(0, 2 if dtype is np.bool_ else 100, size).astype(dtype)
    digests = {one(original)}
    flips = [(int(place), bit) for place in rng.choice(size, 4, replace=False) for bit in range(8 * width)]
    flips = [(place, 0) for place in range(size)] if dtype is np.bool_ else flips
    for place, bit in flips:
        data = bytearray(original.tobytes())
        data[place * width + bit // 8] ^= 1 << bit % 8
        digests.add(one(np.frombuffer(bytes(data), dtype)))
    assert len(digests) == 1 + len(flips)


def test_position_changes_the_digest() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8, 8)).astype(np.float32)
    swapped = x.copy()
    swapped[0, 0], swapped[7, 7] = x[7, 7], x[0, 0]
    rolled, flipped = np.roll(x, 1), x[::-1]
    assert len({one(y) for y in (x, swapped, rolled, flipped, x.T)}) == 5
    assert one(x) == one(x.copy())
    assert len({one(np.zeros(n, np.float32)) for n in (1, 2, 3, 64)}) == 4


def test_signs_of_zero_and_kinds_of_nan_change_the_digest() -> None:
    values = [
        np.float32(0.0),
        np.float32(-0.0),
        np.uint32(0x7FC00000).view(np.float32),
        np.uint32(0x7FC00001).view(np.float32),
    ]
    assert len({one(np.full(3, value)) for value in values}) == 4


def test_names_of_arrays() -> None:
    tree = {"a": {"b": jnp.ones(3), "c": jnp.zeros(3)}, "d": jnp.ones(3)}
    digests = digest_arrays(tree)
    assert list(digests) == ["a/b", "a/c", "d"] and all(len(digest) == 16 for digest in digests.values())
    assert digests["a/b"] == digests["d"] != digests["a/c"]


def test_a_shard_counts_once_whoever_reports_it() -> None:
    """A digest that counted a replica twice made a run set an intact checkpoint aside."""
    tree = {"a": {"b": jnp.ones((3, 2))}, "c": jnp.arange(3)}
    of_one = finish_digests(start_digests(tree))
    assert join_digests([of_one, of_one]) == join_digests([of_one]) == digest_arrays(tree)


def test_one_digest_for_a_tree() -> None:
    tree = {"a": {"b": jnp.ones(3), "c": jnp.zeros(3)}}
    others = [
        {"a": {"c": jnp.ones(3), "b": jnp.zeros(3)}},
        {"a": {"b": jnp.ones(3)}},
        {"a": {"b": jnp.ones(3), "c": jnp.zeros(4)}},
        {"x": {"b": jnp.ones(3), "c": jnp.zeros(3)}},
    ]
    assert digest_of(tree) == digest_of({"a": {"c": jnp.zeros(3), "b": jnp.ones(3)}})
    assert len({digest_of(other) for other in [tree, *others]}) == 5
    assert len(digest_of(tree)) == 16

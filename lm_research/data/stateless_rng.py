"""Stateless random numbers.

Every random choice about data is a pure function of (seed, purpose, epoch, index, draw number), computed with
64-bit integer arithmetic only: the same bits on every platform and NumPy version, in any order, from any process,
with no state to save. The mixing function and the streams are SplitMix64's (Steele, Lea and Flood, "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014): draw n of the stream that starts at `key` is
`mix(key + (n + 1) * GOLDEN)`, which is what their sequential generator returns at its n-th call.

Shapes: B examples, R draws.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from lm_research.common.rounding import ceil_div

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment: the odd integer nearest to 2**64 / golden ratio
_MASK = 2**64 - 1
_ROUNDS = 18  # of the Feistel network; with 10, a chi-square test detects unfair shuffles of 5 or 6 items


def mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer, a bijection of the 64-bit integers.

    Args:
      x: uint64, any shape.

    Returns:
      uint64 of the same shape.
    """
    x = np.array(x, dtype=np.uint64, ndmin=1)  # a copy; a 0-d array would warn on overflow
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _as_uint64(values: np.ndarray | int) -> np.ndarray:
    """Convert integers of any type and sign to uint64 modulo 2**64, at least one-dimensional."""
    if isinstance(values, int):
        return np.array([values & _MASK], dtype=np.uint64)
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def _draw(key: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """Compute draw `number` (0, 1, ...) of the streams that start at `key`; shapes broadcast."""
    return mix(key + (_as_uint64(number) + np.uint64(1)) * np.uint64(GOLDEN))


def _purpose_key(seed: int, purpose: str) -> np.ndarray:
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return _draw(_draw(_as_uint64(seed), 0), word)


def example_keys(seed: int, purpose: str, epoch_B: np.ndarray | int, index_B: np.ndarray | int) -> np.ndarray:
    """Derive the keys of examples' random streams.

    Args:
      seed: seed of the run; any integer.
      purpose: use of the stream ("mask", "pair", ...); streams of different purposes are unrelated.
      epoch_B: epoch of each example, or one epoch for all.
      index_B: index of each example.

    Returns:
      uint64 [B].
    """
    return _draw(_draw(_purpose_key(seed, purpose), epoch_B), index_B)


def uniform(keys_B: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    """Compute uniform numbers: draws start, ..., start + count - 1 of each example's stream.

    Args:
      keys_B: uint64 [B] from `example_keys`.
      count: draws per example.
      start: number of the first draw, which allows reading a stream anywhere.

    Returns:
      float64 [B, count], multiples of 2**-53 in [0, 1).
    """
    numbers_R = np.arange(start, start + count, dtype=np.uint64)
    bits_BR = _draw(_as_uint64(keys_B)[:, None], numbers_R[None, :])
    return (bits_BR >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_draw(keys_B: np.ndarray, number: int = 0) -> np.ndarray:
    """Compute draw `number` of each example's stream: float64 [B]."""
    return uniform(keys_B, 1, number)[:, 0]


def permute(index_B: np.ndarray, size: int, seed: int, purpose: str, epoch_B: np.ndarray | int) -> np.ndarray:
    """Compute where a random permutation of range(size) moves each index, without building the permutation.

    It is a keyed bijection of [0, size) for each epoch: a Feistel network over pairs of residues with cycle walking
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Time and memory do not depend on size.

    Args:
      index_B: integers in [0, size).
      size: number of shuffled items, 1 to 2**62.
      seed: seed of the run.
      purpose: use of the permutation; those of different purposes are unrelated.
      epoch_B: epoch of each index, or one for all; epochs are shuffled independently.

    Returns:
      int64 [B].
    """
    assert 1 <= size <= 2**62, size
    index_B = np.atleast_1d(np.asarray(index_B, dtype=np.int64))
    assert index_B.size == 0 or (index_B.min() >= 0 and index_B.max() < size), (index_B, size)
    key_B = np.broadcast_to(_draw(_purpose_key(seed, purpose), epoch_B), index_B.shape)
    rows = math.isqrt(size - 1) + 1  # rows * columns is size or slightly more
    columns = ceil_div(size, rows)
    out_B = _feistel(index_B.astype(np.uint64), key_B, rows, columns)
    outside_B = np.flatnonzero(out_B >= size)
    while outside_B.size:  # the cycle of an index below size leads back below size
        out_B[outside_B] = _feistel(out_B[outside_B], key_B[outside_B], rows, columns)
        outside_B = outside_B[out_B[outside_B] >= size]
    return out_B.astype(np.int64)


def _feistel(x_B: np.ndarray, key_B: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Apply a keyed bijection of [0, rows * columns), uint64 [B] to uint64 [B]."""
    rows_, columns_ = np.uint64(rows), np.uint64(columns)
    row_B: np.ndarray = x_B // columns_
    column_B: np.ndarray = x_B % columns_
    for number in range(_ROUNDS):
        round_key_B = _draw(key_B, number)
        if number % 2 == 0:
            row_B = (row_B + _draw(round_key_B, column_B) % rows_) % rows_
        else:
            column_B = (column_B + _draw(round_key_B, row_B) % columns_) % columns_
    return row_B * columns_ + column_B

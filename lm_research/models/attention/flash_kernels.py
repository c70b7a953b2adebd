"""The kernels of flash.py: the computation of one program, for one head and one block of queries or keys.

Every kernel receives its sequence's block bounds, segments, prefixes and numbers (`Masks`) whole. Of queries, keys and values it receives
its own block, or all positions, of which it reads a block at a time.

Legend: Q queries and N keys of a block, K head width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm_research.models.layers import mix_bits

# Scores are logarithms to base 2, because the hardware computes exp2.
LOG2_E = math.log2(math.e)
# The score of a masked key, and the initial maximum. exp2 of their difference is 0, and both are finite, so that it is defined.
_MASKED, _INITIAL_MAX = -1e30, -5e29


class Tile(NamedTuple):
    """Tile sizes of a kernel: queries and keys of a block, warps of a program, pipeline stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Tile sizes of the three kernels; the defaults were measured on an H100 (experiments/benchmarks/attention)."""

    forward: Tile = Tile(64, 64, 4, 2)
    keys: Tile = Tile(64, 64, 4, 3)
    queries: Tile = Tile(64, 64, 4, 2)


class Static(NamedTuple):
    """Compile-time settings of a kernel; `whole` is the shape [B, H, L, S] by which dropout numbers the scores."""

    causal: bool
    window: int
    scale: float
    rate: float
    whole: tuple[int, int, int, int]
    tiles: Tiles
    interpret: bool


class Masks(NamedTuple):
    """Segments [B, L] and [B, S], prefixes [B, S] or None, and int32 [4]: dropout key (2), first sequence, first head."""

    queries: jax.Array
    keys: jax.Array
    prefix: jax.Array | None
    numbers: jax.Array


class _Numbers(NamedTuple):
    """Scalars of a program: both halves of the dropout key, and its index among the heads of the whole batch."""

    high: jax.Array
    low: jax.Array
    head: jax.Array

    @classmethod
    def read(cls, static: Static, numbers: Any) -> _Numbers:
        """Read the scalars from `Masks.numbers`."""
        high, low, first_row, first_head = (numbers[i] for i in range(4))
        head = (first_row + pl.program_id(2)) * static.whole[1] + first_head + pl.program_id(1)
        return cls(*(x.astype(jnp.uint32) for x in (high, low, head)))


class _Pair(NamedTuple):
    """A block of queries and a block of keys: their indices i and j, and their masks. Scores are [Q, N], or [N, Q] if `transposed`."""

    i: jax.Array
    j: jax.Array
    query_segments: jax.Array
    key_segments: jax.Array
    prefix: jax.Array | None
    numbers: _Numbers
    transposed: bool = False

    def along_queries(self, x_Q: jax.Array) -> jax.Array:
        """Values per query, to broadcast against scores."""
        return x_Q[None, :] if self.transposed else x_Q[:, None]

    def along_keys(self, x_N: jax.Array) -> jax.Array:
        """Values per key, to broadcast against scores."""
        return x_N[:, None] if self.transposed else x_N[None, :]

    def scores(self, static: Static, tile: Tile, query_QK: jax.Array, key_NK: jax.Array) -> jax.Array:
        """Scores to base 2 in float32, _MASKED where a key is masked."""
        pair = (key_NK, query_QK.T) if self.transposed else (query_QK, key_NK.T)
        visible = self.along_queries(self.query_segments) == self.along_keys(self.key_segments)
        if static.causal or static.window:
            query, key = self._positions(tile)
            distance = self.along_queries(query) - self.along_keys(key)
            near = distance >= 0 if static.causal else jnp.abs(distance) <= static.window // 2
            if static.causal and static.window:
                near &= distance < static.window
            if self.prefix is not None:
                near |= self.along_keys(self.prefix) > 0
            visible &= near
        return jnp.where(visible, triton.dot(*pair) * (static.scale * LOG2_E), _MASKED)

    def dropout(self, static: Static, tile: Tile, x: jax.Array) -> jax.Array:
        """Apply dropout with the bits of `layers.dropout`: scores are numbered in the whole batch."""
        if static.rate == 0.0:
            return x
        _, _, length, keys = static.whole
        query, key = (position.astype(jnp.uint32) for position in self._positions(tile))
        first = (self.numbers.head * jnp.uint32(length) + query) * jnp.uint32(keys)
        bits = mix_bits(self.along_queries(first) + self.along_keys(key), self.numbers.high, self.numbers.low)
        return jnp.where(bits >= jnp.uint32(round(static.rate * 2**32)), x * (1.0 / (1.0 - static.rate)), 0.0)

    def gradient(
        self,
        static: Static,
        tile: Tile,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        outer: jax.Array,
        log_total: jax.Array,
        delta: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Probabilities after dropout, and the gradient with respect to the unscaled scores, in float32."""
        probs = jnp.exp2(self.scores(static, tile, query, key) - self.along_queries(log_total))
        product = triton.dot(value, outer.T) if self.transposed else triton.dot(outer, value.T)
        score_gradient = probs * (self.dropout(static, tile, product) - self.along_queries(delta))
        return self.dropout(static, tile, probs), score_gradient

    def _positions(self, tile: Tile) -> tuple[jax.Array, jax.Array]:
        return self.i * tile.queries + jnp.arange(tile.queries), self.j * tile.keys + jnp.arange(tile.keys)


def forward_kernel(
    static: Static,
    tile: Tile,
    first: Any,
    last: Any,
    query_segments: Any,
    key_segments: Any,
    prefix: Any,
    numbers: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    log_total: Any,
) -> None:
    """Compute attention [Q, K] of a block of queries, and log2 of their softmax sums [Q]."""
    i, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    segments = query_segments[pl.ds(i * tile.queries, tile.queries)]
    query = query[...]

    def add(j: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, highest, total = sums
        block = pl.ds(j * tile.keys, tile.keys)
        pair = _Pair(i, j, segments, key_segments[block], None if prefix is None else prefix[block], numbers)
        scores = pair.scores(static, tile, query, key[block, :])
        new_highest = jnp.maximum(highest, scores.max(1))
        weights, shrink = jnp.exp2(scores - new_highest[:, None]), jnp.exp2(highest - new_highest)
        values = value[block, :]
        mixed = mixed * shrink[:, None] + triton.dot(pair.dropout(static, tile, weights).astype(values.dtype), values)
        return mixed, new_highest, total * shrink + weights.sum(1)

    zeros = jnp.zeros((tile.queries,), jnp.float32)
    mixed = jnp.zeros((tile.queries, query.shape[-1]), jnp.float32)
    mixed, highest, total = jax.lax.fori_loop(first[i], last[i], add, (mixed, zeros + _INITIAL_MAX, zeros))
    total = jnp.where(total > 0.0, total, 1.0)
    out[...] = (mixed / total[:, None]).astype(out.dtype)
    log_total[...] = highest + jnp.log2(total)


def keys_kernel(
    static: Static,
    tile: Tile,
    first: Any,
    last: Any,
    query_segments: Any,
    key_segments: Any,
    prefix: Any,
    numbers: Any,
    query: Any,
    key: Any,
    value: Any,
    outer: Any,
    log_total: Any,
    delta: Any,
    key_gradient: Any,
    value_gradient: Any,
) -> None:
    """Compute gradients [N, K] of a block of keys and values, with scores as [N, Q], which no product has to transpose."""
    j, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    block = pl.ds(j * tile.keys, tile.keys)
    segments, block_prefix = key_segments[block], None if prefix is None else prefix[block]
    key, value = key[...], value[...]

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for_key, for_value = sums
        block = pl.ds(i * tile.queries, tile.queries)
        pair = _Pair(i, j, query_segments[block], segments, block_prefix, numbers, transposed=True)
        queries, outers = query[block, :], outer[block, :]
        probs, scores = pair.gradient(static, tile, queries, key, value, outers, log_total[block], delta[block])
        for_value += triton.dot(probs.astype(outers.dtype), outers)
        return for_key + triton.dot(scores.astype(queries.dtype), queries), for_value

    zeros = jnp.zeros(key.shape, jnp.float32)
    for_key, for_value = jax.lax.fori_loop(first[j], last[j], add, (zeros, zeros))
    key_gradient[...] = (for_key * static.scale).astype(key_gradient.dtype)
    value_gradient[...] = for_value.astype(value_gradient.dtype)


def queries_kernel(
    static: Static,
    tile: Tile,
    first: Any,
    last: Any,
    query_segments: Any,
    key_segments: Any,
    prefix: Any,
    numbers: Any,
    query: Any,
    key: Any,
    value: Any,
    outer: Any,
    log_total: Any,
    delta: Any,
    query_gradient: Any,
) -> None:
    """Compute the gradient [Q, K] of a block of queries."""
    i, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    segments = query_segments[pl.ds(i * tile.queries, tile.queries)]
    query, outer, log_total, delta = query[...], outer[...], log_total[...], delta[...]

    def add(j: jax.Array, sum_QK: jax.Array) -> jax.Array:
        block = pl.ds(j * tile.keys, tile.keys)
        pair = _Pair(i, j, segments, key_segments[block], None if prefix is None else prefix[block], numbers)
        keys = key[block, :]
        _, scores = pair.gradient(static, tile, query, keys, value[block, :], outer, log_total, delta)
        return sum_QK + triton.dot(scores.astype(keys.dtype), keys)

    sum_QK = jax.lax.fori_loop(first[i], last[i], add, jnp.zeros(query.shape, jnp.float32))
    query_gradient[...] = (sum_QK * static.scale).astype(query_gradient.dtype)

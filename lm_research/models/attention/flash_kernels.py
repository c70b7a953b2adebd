"""The kernels of flash.py: what one program computes of its block of queries, or of keys, and one head.

Every kernel gets, whole, the blocks to visit, segments, prefixes and numbers of its row of the batch (`Masks`), and of queries, keys
and values its own block or the whole row, of which it reads a block at a time.

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

# Scores are to base 2, as is the exponential that chips have.
LOG2_E = math.log2(math.e)
# The score of what is not seen, and the least that a highest score can be: so far apart that exp2 of their difference is 0, and
# finite, so that it is defined.
_UNSEEN, _LOWEST = -1e30, -5e29


class Tile(NamedTuple):
    """How a kernel is cut: queries and keys of a block, warps of a program, stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Of the three kernels; measured on an H100 (experiments/benchmarks/attention)."""

    forward: Tile = Tile(64, 64, 4, 2)
    keys: Tile = Tile(64, 64, 4, 3)
    queries: Tile = Tile(64, 64, 4, 2)


class Static(NamedTuple):
    """What a kernel is compiled for; `whole` is the shape [B, H, L, S] by which dropout numbers the scores."""

    causal: bool
    window: bool
    scale: float
    rate: float
    whole: tuple[int, int, int, int]
    tiles: Tiles
    interpret: bool


class Masks(NamedTuple):
    """Segments [B, L] and [B, S], prefixes [B, S] or None, and [8] int32: window, dropout's key (2), first row, first head."""

    queries: jax.Array
    keys: jax.Array
    prefix: jax.Array | None
    numbers: jax.Array


class _Numbers(NamedTuple):
    """Scalars of a program: window, both halves of dropout's key, and the number of its head in the whole batch."""

    window: jax.Array
    high: jax.Array
    low: jax.Array
    row: jax.Array

    @classmethod
    def read(cls, static: Static, numbers: Any) -> _Numbers:
        window, high, low, first_row, first_head = (numbers[place] for place in range(5))
        row = (first_row + pl.program_id(2)) * static.whole[1] + first_head + pl.program_id(1)
        return cls(window, *(x.astype(jnp.uint32) for x in (high, low, row)))


class _Pair(NamedTuple):
    """A block of queries and one of keys: numbers of the two, and what masks are made of; `turned` has scores as [N, Q]."""

    i: jax.Array
    j: jax.Array
    query_segments: jax.Array
    key_segments: jax.Array
    prefix: jax.Array | None
    numbers: _Numbers
    turned: bool = False

    def of_queries(self, x_Q: jax.Array) -> jax.Array:
        return x_Q[None, :] if self.turned else x_Q[:, None]

    def of_keys(self, x_N: jax.Array) -> jax.Array:
        return x_N[:, None] if self.turned else x_N[None, :]

    def scores(self, static: Static, tile: Tile, query_QK: jax.Array, key_NK: jax.Array) -> jax.Array:
        """Scores to base 2 in float32, _UNSEEN where a key is not seen."""
        pair = (key_NK, query_QK.T) if self.turned else (query_QK, key_NK.T)
        seen = self.of_queries(self.query_segments) == self.of_keys(self.key_segments)
        if static.causal or static.window:
            query, key = self._at(tile)
            distance = self.of_queries(query) - self.of_keys(key)
            near = distance >= 0 if static.causal else jnp.abs(distance) <= self.numbers.window // 2
            if static.causal and static.window:
                near &= distance < self.numbers.window
            if self.prefix is not None:
                near |= self.of_keys(self.prefix) > 0
            seen &= near
        return jnp.where(seen, triton.dot(*pair) * (static.scale * LOG2_E), _UNSEEN)

    def kept(self, static: Static, tile: Tile, x: jax.Array) -> jax.Array:
        """`x` after dropout, by the element numbers of the scores of the whole batch, as `layers.dropout` has them."""
        if static.rate == 0.0:
            return x
        _, _, length, keys = static.whole
        query, key = (at.astype(jnp.uint32) for at in self._at(tile))
        first = (self.numbers.row * jnp.uint32(length) + query) * jnp.uint32(keys)
        bits = mix_bits(self.of_queries(first) + self.of_keys(key), self.numbers.high, self.numbers.low)
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
        """Probabilities after dropout, and the gradient with respect to the scores (without their scale), in float32."""
        shares = jnp.exp2(self.scores(static, tile, query, key) - self.of_queries(log_total))
        product = triton.dot(value, outer.T) if self.turned else triton.dot(outer, value.T)
        of_scores = shares * (self.kept(static, tile, product) - self.of_queries(delta))
        return self.kept(static, tile, shares), of_scores

    def _at(self, tile: Tile) -> tuple[jax.Array, jax.Array]:
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
    """Attention [Q, K] of a block of queries, and the logarithm to base 2 of their sums [Q]."""
    i, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    own = query_segments[pl.ds(i * tile.queries, tile.queries)]
    query = query[...]

    def add(j: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, highest, total = sums
        at = pl.ds(j * tile.keys, tile.keys)
        pair = _Pair(i, j, own, key_segments[at], None if prefix is None else prefix[at], numbers)
        scores = pair.scores(static, tile, query, key[at, :])
        new_highest = jnp.maximum(highest, scores.max(1))
        shares, shrink = jnp.exp2(scores - new_highest[:, None]), jnp.exp2(highest - new_highest)
        values = value[at, :]
        mixed = mixed * shrink[:, None] + triton.dot(pair.kept(static, tile, shares).astype(values.dtype), values)
        return mixed, new_highest, total * shrink + shares.sum(1)

    none = jnp.zeros((tile.queries,), jnp.float32)
    mixed = jnp.zeros((tile.queries, query.shape[-1]), jnp.float32)
    mixed, highest, total = jax.lax.fori_loop(first[i], last[i], add, (mixed, none + _LOWEST, none))
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
    """Gradients [N, K] of a block of keys and values; scores lie turned, so that no product needs them transposed."""
    j, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    here = pl.ds(j * tile.keys, tile.keys)
    own, own_prefix = key_segments[here], None if prefix is None else prefix[here]
    key, value = key[...], value[...]

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for_key, for_value = sums
        at = pl.ds(i * tile.queries, tile.queries)
        pair = _Pair(i, j, query_segments[at], own, own_prefix, numbers, turned=True)
        queries, outers = query[at, :], outer[at, :]
        shares, scores = pair.gradient(static, tile, queries, key, value, outers, log_total[at], delta[at])
        for_value += triton.dot(shares.astype(outers.dtype), outers)
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
    """Gradient [Q, K] of a block of queries."""
    i, numbers = pl.program_id(0), _Numbers.read(static, numbers)
    own = query_segments[pl.ds(i * tile.queries, tile.queries)]
    query, outer, log_total, delta = query[...], outer[...], log_total[...], delta[...]

    def add(j: jax.Array, sum_QK: jax.Array) -> jax.Array:
        at = pl.ds(j * tile.keys, tile.keys)
        pair = _Pair(i, j, own, key_segments[at], None if prefix is None else prefix[at], numbers)
        keys = key[at, :]
        _, scores = pair.gradient(static, tile, query, keys, value[at, :], outer, log_total, delta)
        return sum_QK + triton.dot(scores.astype(keys.dtype), keys)

    sum_QK = jax.lax.fori_loop(first[i], last[i], add, jnp.zeros(query.shape, jnp.float32))
    query_gradient[...] = (sum_QK * static.scale).astype(query_gradient.dtype)

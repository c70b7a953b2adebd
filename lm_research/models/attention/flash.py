"""Attention that never writes scores to memory: kernels for GPUs (FlashAttention-2, Dao 2023, arXiv:2307.08691).

Each program of a kernel holds a block of queries and loops over the blocks of keys that they may attend to, accumulating a running
softmax. The backward pass recomputes the scores, once per block of keys and once per block of queries. Pairs of blocks that are masked
completely (packed documents, padding, causality, windows) are skipped. Dropout draws the bits of `layers.dropout`, so that kernel and
reference drop the same probabilities. The kernels are written in Pallas and compiled by Triton; without a GPU they are interpreted,
slowly.

Legend: lm_research/models/__init__.py; here Q is queries and N keys of a block, I the number of query blocks, and J of key blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm_research.models.attention.flash_kernels import (
    Masks,
    Static,
    Tile,
    Tiles,
    forward_kernel,
    keys_kernel,
    queries_kernel,
)
from lm_research.models.attention.mask import AttentionMask, near_blocks, visited_blocks
from lm_research.models.layers import STATISTICS, named
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import first_head, first_row, per_device

ArraySpecs = Sequence[tuple[Any, pl.BlockSpec]]
Residuals = tuple[jax.Array, jax.Array, jax.Array, Masks, jax.Array, jax.Array]  # see _forward


def flash_attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    mask: AttentionMask,
    scale: float | jax.Array = 1.0,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    tiles: Tiles | None = None,
) -> jax.Array:
    """`module.reference_attention` without scores in memory: equal up to rounding, with zeros for queries that attend to no key.

    On a mesh each device computes its sequences and heads.

    Args:
      query_BLHK: queries.
      key_BSHK: keys.
      value_BSHK: values.
      mask: the mask, without `distances_HX`.
      scale: factor on the scores.
      dropout_rate: dropout on the probabilities.
      dropout_key: PRNG key for dropout; None disables it.
      tiles: tile sizes; None for the ones measured to be fast.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    assert mask.distances_HX is None
    if not isinstance(scale, float):  # it differs between layers
        query_BLHK, scale = query_BLHK * jnp.asarray(scale, query_BLHK.dtype), 1.0
    (batch, length, heads, _), keys = query_BLHK.shape, key_BSHK.shape[1]
    rate = 0.0 if dropout_key is None else dropout_rate
    whole = (batch, heads, length, keys)
    static = Static(mask.causal, mask.window, scale, rate, whole, tiles or Tiles(), interpret=platform() == "cpu")
    if dropout_key is None or rate == 0.0:
        bits = jnp.zeros(2, jnp.uint32)
    else:
        bits = jax.random.key_data(dropout_key).astype(jnp.uint32)
    numbers = jax.lax.bitcast_convert_type(bits, jnp.int32)
    rows = (mask.query_segments_BL, mask.key_segments_BS, mask.prefix_BS)
    run = functools.partial(_on_device, static)
    return per_device(run, (query_BLHK, key_BSHK, value_BSHK), rows, numbers)


def _on_device(
    static: Static,
    qkv: Sequence[jax.Array],
    rows: tuple[jax.Array, jax.Array, jax.Array | None],
    numbers: jax.Array,
) -> jax.Array:
    """Compute one device's part.

    Sequences are padded to whole blocks by positions that are masked on both sides, and heads by zeros to a width that is a power of two,
    as Triton requires.
    """
    (batch, length, heads, width), sources = qkv[0].shape, qkv[1].shape[1]
    single_device = not jax.sharding.get_abstract_mesh().manual_axes
    first = (0, 0) if single_device else (first_row(batch), first_head(heads))
    numbers = jnp.concatenate([numbers, jnp.stack([jnp.asarray(n, jnp.int32) for n in first])])
    pad_L, pad_S = (-n % _max_block(n) for n in (length, sources))
    pad_K = max(16, pl.next_power_of_2(width)) - width

    def pad(x: jax.Array, amount: int, value: int = 0) -> jax.Array:
        return jnp.pad(x.astype(jnp.int32), [(0, 0), (0, amount)], constant_values=value)

    queries, keys, prefix = pad(rows[0], pad_L, -1), pad(rows[1], pad_S, -2), rows[2]
    masks = Masks(queries, keys, None if prefix is None else pad(prefix, pad_S), numbers)
    padded = (
        jnp.pad(x, [(0, 0), (0, amount), (0, 0), (0, pad_K)])
        for x, amount in zip(qkv, (pad_L, pad_S, pad_S), strict=True)
    )
    return _flash(static, *padded, masks)[:, :length, :, :width]


def _max_block(length: int) -> int:
    """The longest block for sequences of this length, which are padded to a multiple of it."""
    return min(128, max(16, pl.next_power_of_2(length)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(static: Static, query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    return _forward(static, query, key, value, masks)[0]


def _forward(
    static: Static, query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks
) -> tuple[jax.Array, Residuals]:
    """Attention, and the residuals of the backward pass: inputs, output, and log2 of each query's softmax sum [B, H, L]."""
    grid = _Grid(static, static.tiles.forward, query, key)
    batch, length, heads, _ = query.shape
    log_total_shape = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    out, log_total = grid.run(
        forward_kernel,
        masks,
        [grid.queries(query), grid.whole(key), grid.whole(value)],
        [grid.queries(query), grid.query_rows(log_total_shape)],
    )
    out, log_total = named(out, "mixed"), named(log_total, STATISTICS)
    return out, (query, key, value, masks, out, log_total)


def _backward(
    static: Static, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, masks, out, log_total = residuals
    # The softmax's gradient subtracts this sum over keys of probability times its gradient.
    delta = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    grid = _Grid(static, static.tiles.keys, query, key, by_keys=True)
    key_gradient, value_gradient = grid.run(
        keys_kernel,
        masks,
        [grid.whole(query), grid.keys(key), grid.keys(value), grid.whole(gradient)]
        + [grid.whole_rows(log_total), grid.whole_rows(delta)],
        [grid.keys(key), grid.keys(value)],
    )
    grid = _Grid(static, static.tiles.queries, query, key)
    (query_gradient,) = grid.run(
        queries_kernel,
        masks,
        [grid.queries(query), grid.whole(key), grid.whole(value), grid.queries(gradient)]
        + [grid.query_rows(log_total), grid.query_rows(delta)],
        [grid.queries(query)],
    )
    return query_gradient, key_gradient, value_gradient, None


_flash.defvjp(_forward, _backward)


class _Grid:
    """The programs of one kernel, (blocks of queries, or `by_keys` of keys) x heads x batch, and each program's part of the arrays."""

    def __init__(self, static: Static, tile: Tile, query: jax.Array, key: jax.Array, by_keys: bool = False) -> None:
        lengths = query.shape[1], key.shape[1]
        self.tile = tile._replace(
            queries=min(tile.queries, _max_block(lengths[0])), keys=min(tile.keys, _max_block(lengths[1]))
        )
        self.blocks = lengths[0] // self.tile.queries, lengths[1] // self.tile.keys
        self.shape = (self.blocks[by_keys], query.shape[2], query.shape[0])
        self.static, self.by_keys = static, by_keys

    def queries(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, L, H, K] of which a program has its block of queries."""
        return x, pl.BlockSpec((None, self.tile.queries, None, x.shape[-1]), lambda i, h, b: (b, i, h, 0))

    def keys(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, S, H, K] of which a program has its block of keys."""
        return x, pl.BlockSpec((None, self.tile.keys, None, x.shape[-1]), lambda j, h, b: (b, j, h, 0))

    def whole(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, L or S, H, K] of which a program has all positions."""
        return x, pl.BlockSpec((None, x.shape[1], None, x.shape[-1]), lambda i, h, b: (b, 0, h, 0))

    def query_rows(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, H, L] of which a program has its block of queries."""
        return x, pl.BlockSpec((None, None, self.tile.queries), lambda i, h, b: (b, h, i))

    def whole_rows(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, H, L] of which a program has all positions."""
        return x, pl.BlockSpec((None, None, x.shape[-1]), lambda i, h, b: (b, h, 0))

    def run(
        self, kernel: Callable[..., None], masks: Masks, inputs: ArraySpecs, outputs: ArraySpecs
    ) -> Sequence[jax.Array]:
        """Call a kernel with block bounds, masks and `inputs`; returns arrays of the shapes in `outputs`."""
        first, last = self.bounds(masks)
        by_sequence = [
            (x, None if x is None else pl.BlockSpec((None, x.shape[1]), lambda i, h, b: (b, 0)))
            for x in (first, last, masks.queries, masks.keys, masks.prefix)
        ]
        numbers = (masks.numbers, pl.BlockSpec(masks.numbers.shape, lambda i, h, b: (0,)))
        arrays, in_specs = zip(*by_sequence, numbers, *inputs, strict=True)
        shapes, out_specs = zip(*outputs, strict=True)
        return pl.pallas_call(
            functools.partial(kernel, self.static, self.tile),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
            grid=self.shape,
            in_specs=list(in_specs),
            out_specs=list(out_specs),
            compiler_params=triton.CompilerParams(num_warps=self.tile.warps, num_stages=self.tile.stages),
            interpret=self.static.interpret,
            name="flash_" + kernel.__name__,
        )(*arrays)

    def bounds(self, masks: Masks) -> tuple[jax.Array, jax.Array]:
        """The first block that each program visits, and the end of its range: [B, I] over keys, or [B, J] over queries."""
        sizes, static = (self.tile.queries, self.tile.keys), self.static
        near_IJ = near_blocks(self.blocks, sizes, static.causal, static.window, has_prefix=masks.prefix is not None)
        queries, keys = (
            x.reshape(-1, count, size)
            for x, count, size in zip((masks.queries, masks.keys), self.blocks, sizes, strict=True)
        )
        return visited_blocks(near_IJ, queries, keys, self.by_keys)

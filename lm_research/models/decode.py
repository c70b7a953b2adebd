"""Decoding with a cache: a decoder runs on new tokens only, through the same blocks, and reads those before from slots.

Legend: B rows, L new tokens, S slots, M places of an encoder's row, G key/value heads, K head width, D model width, N layers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.attention.cache import Cache, CacheSlots, LayerCache, write
from lm_research.models.attention.mask import MASKED
from lm_research.models.decode_layout import BoundModel, bind, predict, unroll
from lm_research.models.positions import distance_buckets
from lm_research.models.transformer import Block, BlockInputs, EncoderOutput
from lm_research.parallel.rules import constrain

__all__ = ["BoundModel", "Cache", "CacheSlots", "bind", "empty", "extend", "predict", "unroll", "write"]

CACHE_AXES = ("batch", "act_heads", None, None)


def empty(bound: BoundModel, rows: int, slots: int, memory: EncoderOutput | None = None) -> Cache:
    """A cache without tokens; the encoder's keys and values are computed here, once."""
    arch, blocks = bound.model.arch, bound.blocks
    shape = (slots, arch.head_width)
    if blocks is None:
        whole = jnp.zeros((arch.num_layers, rows, arch.kv_heads, *shape), arch.compute_dtype)
        cache = Cache(constrain(whole, None, *CACHE_AXES), constrain(whole, None, *CACHE_AXES))
    else:
        apart = tuple(jnp.zeros((rows * arch.kv_heads, *shape), arch.compute_dtype) for _ in blocks)
        cache = Cache(apart, apart)
    if memory is None:
        return cache

    def cross(block: Block) -> tuple[jax.Array, ...]:
        pair = block.cross_attention.keys_and_values(memory.x_BSD)
        return tuple(constrain(x_BMGK.swapaxes(1, 2), *CACHE_AXES) for x_BMGK in pair)

    if blocks is None:
        graph, stacked = nnx.split(bound.model.decoder.layers)
        keys, values = jax.lax.map(lambda params: cross(nnx.merge(graph, params)), stacked)
    else:
        keys, values = zip(*map(cross, blocks), strict=True)
    return cache._replace(cross_keys=keys, cross_values=values, memory_mask_BM=memory.segments_BS > 0)


def block_inputs(bound: BoundModel, cache: Cache, slots: CacheSlots, positions_BL: jax.Array) -> BlockInputs:
    """What the blocks share: what is added to scores [B, 1 or H, L, S], from what each new token sees."""
    decoder, arch = bound.model.decoder, bound.model.arch
    visible_B1LS, distance_BLS = slots.visible_BLS[:, None], slots.distance_BLS
    masked = lambda seen: jnp.where(seen, 0.0, MASKED).astype(jnp.float32)  # noqa: E731
    bias = masked(visible_B1LS & (distance_BLS < arch.window)[:, None] if arch.window else visible_B1LS)
    if arch.positions == "relative":
        longest = slots.visible_BLS.shape[-1]
        buckets = distance_buckets(
            -np.arange(longest), arch.relative_buckets, arch.relative_max_distance, both_ways=False
        )
        by_distance_SH = decoder.relative_bias[...].astype(jnp.float32)[buckets]
        bias += jnp.moveaxis(by_distance_SH[jnp.clip(distance_BLS, 0, longest - 1)], -1, 1)
    unlimited = masked(visible_B1LS) if arch.window_from else None
    cross_bias = None if cache.memory_mask_BM is None else masked(cache.memory_mask_BM[:, None, None])
    return BlockInputs(bias, unlimited, positions_BL, None, cross_bias)


def extend(bound: BoundModel, tokens_BL: jax.Array, cache: Cache, slots: CacheSlots) -> tuple[jax.Array, Cache]:
    """Final states of new tokens [B, L, D], and the cache with them in it.

    Args:
      bound: the model; only its decoder runs.
      tokens_BL: the new tokens.
      cache: of the earlier ones. Give it up: it is written in place where jit may do so.
      slots: where they stand and what they see.
    """
    decoder, arch = bound.model.decoder, bound.model.arch
    positions_BL = slots.positions_BL
    if cache.first_B is not None:
        positions_BL += cache.first_B[:, None]
    elif not arch.count_padding:  # padding stands before position 0
        positions_BL = jnp.where(tokens_BL == arch.pad_id, -1, positions_BL)
    if arch.positions == "learned":  # padding, and rows that have ended, may stand outside
        positions_BL = jnp.clip(positions_BL, -arch.position_offset, arch.max_length - 1)
    table_VE = None if arch.has_tokens else bound.model.table_VE
    x_BLD = decoder.embeddings(tokens_BL, positions_BL, None, None, table_VE)
    inputs, span = block_inputs(bound, cache, slots, positions_BL), slots.visible_BLS.shape[-1]

    def run(block: Block, x_BLD: jax.Array, key: Any, value: Any, cross: Any, number: Any) -> tuple:
        own = LayerCache(key, value, slots.slot, span)
        across = None if cross is None else LayerCache(*cross, None, cross[0].shape[-2])
        return block(x_BLD, inputs, None, number, cache=own, cross_cache=across), own.key, own.value

    crosses = (cache.cross_keys, cache.cross_values) if arch.encoder is not None else None
    if bound.blocks is None:
        x_BLD, keys, values = _loop(decoder, run, x_BLD, cache, crosses)
    else:
        keys, values = [], []
        for number, block in enumerate(bound.blocks):
            cross = None if crosses is None else (crosses[0][number], crosses[1][number])
            x_BLD, key, value = run(block, x_BLD, cache.keys[number], cache.values[number], cross, number)
            keys.append(key)
            values.append(value)
        keys, values = tuple(keys), tuple(values)
    x_BLD = decoder.final_norm(x_BLD) if arch.norm == "pre" else x_BLD
    return x_BLD, cache._replace(keys=keys, values=values)


def _loop(decoder: Any, run: Any, x_BLD: jax.Array, cache: Cache, crosses: Any) -> tuple:
    """All layers in a loop; the cache is carried whole, so that only new entries are written."""
    graph, stacked = nnx.split(decoder.layers)

    def body(carry: tuple, layer: tuple) -> tuple[tuple, None]:
        x_BLD, keys, values = carry
        params, number, cross = layer
        at = lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False)  # noqa: E731
        x_BLD, key, value = run(nnx.merge(graph, params), x_BLD, at(keys), at(values), cross, number)
        put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, number, 0)  # noqa: E731
        return (x_BLD, put(keys, key), put(values, value)), None

    layers = (stacked, jnp.arange(decoder.arch.num_layers), crosses)
    (x_BLD, keys, values), _ = jax.lax.scan(body, (x_BLD, cache.keys, cache.values), layers)
    return x_BLD, keys, values

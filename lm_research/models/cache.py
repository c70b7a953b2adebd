"""Decoding with a cache: a decoder runs on new tokens only, and reads keys and values of the earlier ones from slots.

A cache has S slots a row. New tokens take consecutive slots; which slots a token sees, and how far it stands from them, is
said by the caller (`Place`). So one function serves prompts (L tokens that see their past), single tokens, the beams of
a row (L tokens at one place, each with its own ancestors), and candidates that are tried and dropped.

Legend: B rows, L new tokens, S slots, M places of an encoder's row, H query heads, G key/value heads, R = H / G, K head
width, D model width, N layers.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.attention import Attention
from lm_research.models.masks import MASKED
from lm_research.models.positions import distance_buckets, rotary_frequencies, rotate
from lm_research.models.transformer import Block, Memory
from lm_research.models.unrolled import Bound, bind, dense, feed_forward, predict, unroll
from lm_research.parallel.rules import constrain

__all__ = ["Bound", "Cache", "Place", "bind", "empty", "extend", "predict", "unroll", "write"]

# A tuple with an array for each layer, or one array [N, ...] where layers are looped over.
Layers = Any


class Cache(NamedTuple):
    """Keys and values of each layer [B, G, S, K], and those of the encoder's states [B, G, M, K].

    Layers that are apart have rows and heads as one axis, [B x G, S, K]: so XLA's products take them. If it has to reshape what
    was just written, it repeats the writing inside of what reads, each time into a copy of the whole.
    """

    keys: Layers
    values: Layers
    cross_keys: Layers = ()
    cross_values: Layers = ()
    memory_mask_BM: jax.Array | None = None
    first_B: jax.Array | None = None  # the position of each row's first token, where it is not 0


class Place(NamedTuple):
    """Where L new tokens stand.

    slot: the first of the L slots they take: a number, or [B].
    positions_BL: position ids.
    visible_BLS: which slots each sees, its own among them; B may be 1. S may be less than the cache has: the rest is
      not read.
    distance_BLS: its place minus theirs, for windows and relative positions; B may be 1, negative ones do not matter.
    """

    slot: jax.Array
    positions_BL: jax.Array
    visible_BLS: jax.Array
    distance_BLS: jax.Array


def empty(bound: Bound, rows: int, slots: int, memory: Memory | None = None) -> Cache:
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

    def cross(block: Block) -> tuple[jax.Array, jax.Array]:
        attention = block.cross_attention
        pair = (dense(part, memory.x_BSD).swapaxes(1, 2) for part in (attention.key, attention.value))
        return tuple(constrain(x_BGMK, *CACHE_AXES) for x_BGMK in pair)

    if blocks is None:
        graph, stacked = nnx.split(bound.model.decoder.layers)
        keys, values = jax.lax.map(lambda params: cross(nnx.merge(graph, params)), stacked)
    else:
        keys, values = zip(*map(cross, blocks), strict=True)
    return cache._replace(cross_keys=keys, cross_values=values, memory_mask_BM=memory.segments_BS > 0)


CACHE_AXES = ("batch", "act_heads", None, None)


def write(slots_BGSK: jax.Array, new_BGLK: jax.Array, slot: jax.Array) -> jax.Array:
    """Puts L entries into each row from `slot` on: a number, or [B]. The cache may have rows and heads as one axis."""
    flat = slots_BGSK.ndim == 3
    heads = new_BGLK.shape[1]
    new = new_BGLK.reshape(-1, *new_BGLK.shape[2:]) if flat else new_BGLK
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots_BGSK, new, slot, axis=slots_BGSK.ndim - 2)
    put = lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=row.ndim - 2)  # noqa: E731
    return jax.vmap(put)(slots_BGSK, new, jnp.repeat(slot, heads) if flat else slot)


def scores_bias(bound: Bound, place: Place) -> tuple[jax.Array, jax.Array | None]:
    """What is added to scores [B, 1 or H, L, S], and the same without a window where some layers have none."""
    decoder, arch = bound.model.decoder, bound.model.arch
    visible_B1LS, distance_BLS = place.visible_BLS[:, None], place.distance_BLS
    masked = lambda seen: jnp.where(seen, 0.0, MASKED).astype(jnp.float32)  # noqa: E731
    bias = masked(visible_B1LS & (distance_BLS < arch.window)[:, None] if arch.window else visible_B1LS)
    if arch.positions == "relative":
        longest = place.visible_BLS.shape[-1]
        buckets = distance_buckets(
            -np.arange(longest), arch.relative_buckets, arch.relative_max_distance, both_ways=False
        )
        by_distance_SH = decoder.relative_bias[...].astype(jnp.float32)[buckets]
        bias += jnp.moveaxis(by_distance_SH[jnp.clip(distance_BLS, 0, longest - 1)], -1, 1)
    return bias, masked(visible_B1LS) if arch.window_from else None


def attend(
    query_BLHK: jax.Array, key_BGSK: jax.Array, value_BGSK: jax.Array, bias_BHLS: jax.Array, scale: Any
) -> jax.Array:
    """models.attention.attend, [B, L, H, K], over heads-first keys that H / G query heads share without copies.

    Keys and values may have rows and heads as one axis.
    """
    batch, length, heads, width = query_BLHK.shape
    front, slots = key_BGSK.shape[:-2], key_BGSK.shape[-2]
    groups = front[0] // batch if len(front) == 1 else front[1]
    query = (query_BLHK * scale).swapaxes(1, 2).reshape(*front, heads // groups * length, width)
    scores = jnp.einsum("...QK,...SK->...QS", query, key_BGSK, preferred_element_type=jnp.float32)
    scores_BHLS = scores.reshape(batch, heads, length, slots) + bias_BHLS
    shares = jax.nn.softmax(scores_BHLS, axis=-1).astype(value_BGSK.dtype).reshape(scores.shape)
    mixed = jnp.einsum("...QS,...SK->...QK", shares, value_BGSK)
    return mixed.reshape(batch, heads, length, width).swapaxes(1, 2)


# --- running on new tokens --------------------------------------------------------------------------------------------


def extend(bound: Bound, tokens_BL: jax.Array, cache: Cache, place: Place) -> tuple[jax.Array, Cache]:
    """Final states of new tokens [B, L, D], and the cache with them in it.

    Args:
      bound: the model; only its decoder runs.
      tokens_BL: the new tokens.
      cache: of the earlier ones. Give it up: it is written in place where jit may do so.
      place: where they stand and what they see.
    """
    decoder, arch = bound.model.decoder, bound.model.arch
    positions_BL = place.positions_BL
    if cache.first_B is not None:
        positions_BL += cache.first_B[:, None]
    elif not arch.count_padding:  # padding stands before position 0
        positions_BL = jnp.where(tokens_BL == arch.pad_id, -1, positions_BL)
    if arch.positions == "learned":  # padding, and rows that have ended, may stand outside
        positions_BL = jnp.clip(positions_BL, -arch.position_offset, arch.max_length - 1)
    table_VE = None if arch.has_tokens else bound.model.table_VE
    x_BLD = decoder.embeddings(tokens_BL, positions_BL, None, None, table_VE)
    bias, unlimited = scores_bias(bound, place)
    cross_bias = None
    if cache.memory_mask_BM is not None:
        cross_bias = jnp.where(cache.memory_mask_BM[:, None, None], 0.0, MASKED).astype(jnp.float32)
    shared = _Shared(place.slot, positions_BL, bias, unlimited, cross_bias, place.visible_BLS.shape[-1])
    if bound.blocks is None:
        x_BLD, keys, values = _loop(decoder, x_BLD, cache, shared)
    else:
        keys, values = [], []
        for number, block in enumerate(bound.blocks):
            cross = (cache.cross_keys[number], cache.cross_values[number]) if cache.cross_keys else None
            x_BLD, key, value = _block(
                block, x_BLD, cache.keys[number], cache.values[number], cross, shared, number, number
            )
            keys.append(key)
            values.append(value)
        keys, values = tuple(keys), tuple(values)
    x_BLD = decoder.final_norm(x_BLD) if arch.norm == "pre" else x_BLD
    return x_BLD, cache._replace(keys=keys, values=values)


class _Shared(NamedTuple):
    """What all layers of one call share; see Place and scores_bias."""

    slot: jax.Array
    positions_BL: jax.Array
    bias: jax.Array
    unlimited: jax.Array | None
    cross_bias: jax.Array | None
    span: int  # slots that are read


def _loop(decoder: Any, x_BLD: jax.Array, cache: Cache, shared: _Shared) -> tuple:
    """All layers in a loop; the cache is carried whole, so that only new entries are written."""
    graph, stacked = nnx.split(decoder.layers)
    crosses = cache.memory_mask_BM is not None

    def body(carry: tuple, layer: tuple) -> tuple[tuple, None]:
        x_BLD, keys, values = carry
        params, number, cross = layer
        at = lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False)  # noqa: E731
        block = nnx.merge(graph, params)
        x_BLD, key, value = _block(block, x_BLD, at(keys), at(values), cross, shared, number, None)
        put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, number, 0)  # noqa: E731
        return (x_BLD, put(keys, key), put(values, value)), None

    cross = (cache.cross_keys, cache.cross_values) if crosses else None
    layers = (stacked, jnp.arange(decoder.arch.num_layers), cross)
    (x_BLD, keys, values), _ = jax.lax.scan(body, (x_BLD, cache.keys, cache.values), layers)
    return x_BLD, keys, values


def _block(
    block: Block,
    x_BLD: jax.Array,
    key_BGSK: jax.Array,
    value_BGSK: jax.Array,
    cross: tuple[jax.Array, jax.Array] | None,
    shared: _Shared,
    layer: jax.Array | int,
    static_layer: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One Block without dropout: its output, and the layer's cache with the new entries."""
    arch, none = block.arch, itertools.repeat(None)
    bias = shared.bias
    if shared.unlimited is not None:
        if static_layer is None:
            bias = jnp.where(layer < arch.window_from, shared.unlimited, bias)
        else:
            bias = shared.unlimited if static_layer < arch.window_from else bias
    written = []

    def attend_to_past(x_BLD: jax.Array) -> jax.Array:
        query, key, value = project(block.attention, x_BLD, shared.positions_BL)
        written.extend((write(key_BGSK, key, shared.slot), write(value_BGSK, value, shared.slot)))
        seen = (x[..., : shared.span, :] for x in written)
        context = attend(query, *seen, bias, attention_scale(arch, layer))
        return dense(block.attention.output, context)

    def attend_to_encoder(x_BLD: jax.Array) -> jax.Array:
        query = dense(block.cross_attention.query, x_BLD)
        context = attend(query, *cross, shared.cross_bias, attention_scale(arch, layer))
        return dense(block.cross_attention.output, context)

    x_BLD = block._residual(x_BLD, attend_to_past, block.attention_norm, none)
    if cross is not None:
        x_BLD = block._residual(x_BLD, attend_to_encoder, block.cross_attention_norm, none)
    feed = lambda x_BLD: feed_forward(block.feed_forward, x_BLD)  # noqa: E731
    return block._residual(x_BLD, feed, block.feed_forward_norm, none), *written


def project(attention: Attention, x_BLD: jax.Array, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query [B, L, H, K], key and value [B, G, L, K] of new tokens, rotated where positions rotate."""
    arch, parts = attention.arch, (attention.query, attention.key, attention.value)
    query, key, value = (constrain(dense(part, x_BLD), "batch", None, "act_heads", None) for part in parts)
    if attention.rotary:
        frequency = rotary_frequencies(arch.head_width, arch.rotary_theta, dict(arch.rotary_scaling))
        query, key = rotate(query, positions_BL, frequency), rotate(key, positions_BL, frequency)
    return query, key.swapaxes(1, 2), value.swapaxes(1, 2)


def attention_scale(arch: Any, layer: jax.Array | int) -> Any:
    scale = arch.attention_scale or arch.head_width**-0.5
    return scale / (layer + 1) if arch.scale_by_layer else scale

"""Decoding with a cache: the decoder's blocks run on new tokens only, and read earlier keys and values from the cache's slots.

Legend: lm_research/models/__init__.py and attention/cache.py: L is new tokens, S slots, and M positions of the encoder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.models.architecture import Architecture
from lm_research.models.attention.cache import Cache, CacheSlots, LayerCache, Layers, capacity, write
from lm_research.models.attention.mask import AttentionMask, in_window, mask_to_bias
from lm_research.models.attention.module import Distances
from lm_research.models.block import Block, BlockInputs, DepthAverage
from lm_research.models.decode_layout import BoundModel, bind, predict, unroll
from lm_research.models.layer_plan import segments
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.positions import alibi_by_key, alibi_slopes, distance_buckets, embedded_distances
from lm_research.models.transformer import EncoderOutput
from lm_research.parallel.rules import constrain

__all__ = ["BoundModel", "Cache", "CacheSlots", "bind", "empty", "extend", "predict", "unroll", "write"]

CACHE_AXES = ("batch", "act_heads", None, None)


def empty(
    bound: BoundModel, rows: int, slots: int, memory: EncoderOutput | None = None, step: int = 0, shared: int = 0
) -> Cache:
    """Make a cache without tokens, and compute the encoder's keys and values, which happens once here.

    Args:
      bound: the model.
      rows: B, number of sequences.
      slots: S.
      memory: the encoder's output, for a decoder that has one.
      step: as for `capacity`, for layers with a window.
      shared: as for `capacity`.
    """
    arch = bound.model.arch

    def zeros(spec: LayerSpec, *repeats: int) -> jax.Array:
        heads, width = (1, 1) if spec.attention == "none" else (spec.num_kv_heads, spec.head_size)
        size = capacity(spec.reach, slots, step, shared)
        if bound.blocks is not None:
            return jnp.zeros((rows * heads, size, width), jnp.float32)
        return constrain(jnp.zeros((*repeats, rows, heads, size, width), arch.compute_dtype), None, *CACHE_AXES)

    layers: Layers
    if bound.blocks is not None:
        layers = tuple(map(zeros, arch.layer_specs))
    else:
        specs = [(arch.layer_specs[first : first + period], count) for first, period, count in segments(arch)]
        layers = tuple(tuple(zeros(spec, count) for spec in period) for period, count in specs)
    if memory is None:
        return Cache(layers, layers)
    source_BMD = memory.x_BSD

    def cross(block: Block) -> tuple[jax.Array, ...]:
        pair = block.memory_keys_and_values(source_BMD)
        return tuple(constrain(x_BMGK.swapaxes(1, 2), *CACHE_AXES) for x_BMGK in pair)

    if bound.blocks is not None:
        keys, values = zip(*map(cross, bound.blocks), strict=True)
    else:
        keys, values = bound.model.decoder.map_blocks(cross)
    return Cache(layers, layers, keys, values, memory.segments_BS > 0)


def block_inputs(bound: BoundModel, cache: Cache, slots: CacheSlots, positions_BL: jax.Array) -> BlockInputs:
    """Make the inputs that all blocks share, with biases [B, 1 or H, L, S] for the slots that each new token attends to."""
    distinct: dict[tuple[Any, ...], jax.Array] = {}
    masks: dict[LayerSpec, jax.Array | AttentionMask] = {}
    distances: dict[LayerSpec, Distances] = {}
    buckets: dict[LayerSpec, jax.Array] = {}
    sizes = _sizes(bound, cache)
    for spec in bound.model.arch.kinds:
        if spec.mask_traits not in distinct:
            distinct[spec.mask_traits] = _bias(bound, spec, slots, sizes[spec])
        masks[spec] = distinct[spec.mask_traits]
        if spec.position_terms:
            distances[spec] = _distances(bound, spec, slots, sizes[spec])
        if spec.own_relative_table:
            buckets[spec] = _buckets(bound.model.arch, _entries(spec, slots, sizes[spec])[0])
    memory_mask = None if cache.memory_mask_BM is None else mask_to_bias(cache.memory_mask_BM[:, None, None])
    length = None
    if any(spec.rotary_by_length for spec in masks):
        real_BL = slots.end_B is None or jnp.arange(positions_BL.shape[1]) < slots.end_B[:, None]
        length = jnp.max((positions_BL + 1) * real_BL)
    return BlockInputs(masks, positions_BL, None, memory_mask, distances, buckets=buckets, length=length)


def _sizes(bound: BoundModel, cache: Cache) -> dict[LayerSpec, int]:
    """The number of cache entries of each kind of layer."""
    arch = bound.model.arch
    if bound.blocks is not None:
        pairs = list(zip(arch.layer_specs, cache.keys, strict=True))
    else:
        parts = zip(segments(arch), cache.keys, strict=True)
        pairs = [(arch.layer_specs[part.first + n], key) for part, keys in parts for n, key in enumerate(keys)]
    return {spec: key.shape[-2] for spec, key in pairs}


def _entries(spec: LayerSpec, slots: CacheSlots, size: int) -> tuple[jax.Array, jax.Array]:
    """The distance of each new token from each of a layer's `size` cache entries, and whether it is visible, both [B, L, S]."""
    distance_BLS, visible_BLS = slots.distance_BLS, slots.visible_BLS
    slot_BC = slots.slot_of_entry(spec.reach, size)
    if slot_BC is not None:  # put slots into the order of the layer's entries
        index_B1C = jnp.maximum(slot_BC, 0)[:, None]
        distance_BLS = jnp.take_along_axis(distance_BLS, index_B1C, axis=2)
        visible_BLS = jnp.take_along_axis(visible_BLS, index_B1C, axis=2) & (slot_BC >= 0)[:, None]
    return distance_BLS, visible_BLS


def _distances(bound: BoundModel, spec: LayerSpec, slots: CacheSlots, size: int) -> Distances:
    arch, (distance_BLS, _) = bound.model.arch, _entries(spec, slots, size)
    longest = np.arange(distance_BLS.shape[-1])
    row_S = jnp.asarray(embedded_distances(longest, arch.relative_buckets, arch.relative_max_distance))
    return bound.model.decoder.distances(row_S[jnp.clip(distance_BLS, 0, longest[-1])])


def _bias(bound: BoundModel, spec: LayerSpec, slots: CacheSlots, size: int) -> jax.Array:
    """The bias added to the scores of a layer with `size` cache entries."""
    distance_BLS, visible_BLS = _entries(spec, slots, size)
    if spec.attention == "window":
        visible_BLS = visible_BLS & in_window(distance_BLS, spec.window, causal=True)
    elif spec.attention == "chunked":
        query_BL1 = slots.positions_BL[..., None]
        visible_BLS = visible_BLS & ((query_BL1 - distance_BLS) // spec.window == query_BL1 // spec.window)
    bias = mask_to_bias(visible_BLS[:, None])
    if spec.uses_relative_table:
        table_RH = bound.model.decoder.relative_bias[...].astype(jnp.float32)
        bias += jnp.moveaxis(table_RH[_buckets(bound.model.arch, distance_BLS)], -1, 1)
    elif spec.positions == "alibi" and spec.scaled_alibi:
        bias += alibi_by_key(spec.num_heads, slots.positions_BL[..., None] - distance_BLS, spec.score_scale)
    elif spec.positions == "alibi":
        bias -= alibi_slopes(spec.num_heads)[:, None, None] * distance_BLS[:, None]
    return bias


def _buckets(arch: Architecture, distance_BLS: jax.Array) -> jax.Array:
    """Row of a table of relative positions for each distance; those of keys on the right, which are hidden, are arbitrary."""
    longest, sizes = distance_BLS.shape[-1], (arch.relative_buckets, arch.relative_max_distance)
    return jnp.asarray(distance_buckets(-np.arange(longest), *sizes, bidirectional=False))[
        jnp.clip(distance_BLS, 0, longest - 1)
    ]


def extend(bound: BoundModel, tokens_BL: jax.Array, cache: Cache, slots: CacheSlots) -> tuple[jax.Array, Cache]:
    """Run the decoder on new tokens: their final states [B, L, D], and the cache that includes them.

    Args:
      bound: the model.
      tokens_BL: the new tokens.
      cache: the cache of the earlier tokens. Donate it, so that jit can update it in place.
      slots: the slots of the new tokens, and those that they attend to.
    """
    decoder, arch = bound.model.decoder, bound.model.arch
    positions_BL = slots.positions_BL
    if cache.first_B is not None:
        positions_BL += cache.first_B[:, None]
    if not arch.count_padding and arch.prompt_positions != "rows":  # padding has the position before 0
        positions_BL = jnp.where(tokens_BL == arch.pad_id, -1, positions_BL)
    if arch.positions == "learned":  # positions of padding, and of finished sequences, may be out of range
        positions_BL = jnp.clip(positions_BL, -arch.position_offset, arch.max_length - 1)
    table = None if arch.has_tokens else bound.model.encoder.embeddings.table
    x_BLD = decoder.embeddings(tokens_BL, positions_BL, None, None, table)
    inputs = block_inputs(bound, cache, slots, positions_BL)
    if bound.blocks is None:
        x_BLD, _, extended = decoder.run_layers(x_BLD, inputs, cache=cache, slots=slots)
        assert extended is not None
        cache = extended
    else:
        average = decoder.depth_average([x_BLD]) if arch.depth_weights else None
        x_BLD, cache = _run_unstacked(bound.blocks, x_BLD, inputs, cache, slots, average)
    return decoder.finish(x_BLD), cache


def _run_unstacked(
    blocks: tuple[Block, ...],
    x_BLD: jax.Array,
    inputs: BlockInputs,
    cache: Cache,
    slots: CacheSlots,
    average: DepthAverage | None,
) -> tuple[jax.Array, Cache]:
    """Run unstacked layers one after the other."""
    caches = []
    for layer, block in enumerate(blocks):
        caches.append(LayerCache(cache.keys[layer], cache.values[layer], slots, block.spec.reach))
        cross_cache = LayerCache(cache.cross_keys[layer], cache.cross_values[layer]) if cache.cross_keys else None
        x_BLD = block(x_BLD, inputs, layer=layer, cache=caches[-1], cross_cache=cross_cache, average=average)
    keys, values = tuple(one.key for one in caches), tuple(one.value for one in caches)
    return x_BLD, cache._replace(keys=keys, values=values)

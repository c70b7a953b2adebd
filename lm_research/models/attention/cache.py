"""A cache of keys and values: it only stores, in S slots a row, and hands out those that are read.

New tokens take consecutive slots; which slots a token sees, and how far it stands from them, is said by the caller
(`CacheSlots`). So one cache serves prompts (L tokens that see their past), single tokens, the beams of a row (L tokens at one
place, each with its own ancestors), and candidates that are tried and dropped. Keys and values of an encoder's states are a
cache too, to which nothing is added.

Legend: B rows, L new tokens, S slots, M places of an encoder's row, G key/value heads, K head width, N layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# An array for each layer; where layers are looped over, for each segment and each layer of its period, [repetitions, ...] (layer_plan.py).
Layers = tuple[Any, ...]
Pairs = tuple[tuple[Any, Any], ...]  # keys and values of layers


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

    def of(self, number: int) -> tuple[Pairs, Pairs | None]:
        """Keys and values of each layer of a segment, and of its encoder's states, as pairs."""
        pairs = tuple(zip(self.keys[number], self.values[number], strict=True))
        if not self.cross_keys:
            return pairs, None
        return pairs, tuple(zip(self.cross_keys[number], self.cross_values[number], strict=True))

    def with_layers(self, stores: list[tuple[Pairs, Pairs | None]]) -> Cache:
        """The cache with what `of` gives of all segments."""
        keys, values = (tuple(tuple(pair[part] for pair in pairs) for pairs, _ in stores) for part in (0, 1))
        return self._replace(keys=keys, values=values)


class CacheSlots(NamedTuple):
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


@dataclasses.dataclass
class LayerCache:
    """One layer's keys and values [B, G, S, K] (or [B x G, S, K]) while it runs on new tokens.

    Attributes:
      key, value: all slots; `write` replaces them.
      slot: the first one that new tokens take; None adds nothing, as to an encoder's.
      span: slots that are read.
    """

    key: jax.Array
    value: jax.Array
    slot: jax.Array | None
    span: int

    def write(self, key_BLGK: jax.Array, value_BLGK: jax.Array) -> None:
        """Puts those of new tokens into their slots."""
        assert self.slot is not None
        self.key = write(self.key, key_BLGK.swapaxes(1, 2), self.slot)
        self.value = write(self.value, value_BLGK.swapaxes(1, 2), self.slot)

    def read(self) -> tuple[jax.Array, jax.Array]:
        """What is attended over."""
        return self.key[..., : self.span, :], self.value[..., : self.span, :]


def write(slots_BGSK: jax.Array, new_BGLK: jax.Array, slot: jax.Array) -> jax.Array:
    """Puts L entries into each row from `slot` on: a number, or [B]. The cache may have rows and heads as one axis."""
    flat = slots_BGSK.ndim == 3
    heads = new_BGLK.shape[1]
    new = new_BGLK.reshape(-1, *new_BGLK.shape[2:]) if flat else new_BGLK
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots_BGSK, new, slot, axis=slots_BGSK.ndim - 2)

    def put(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=row.ndim - 2)

    return jax.vmap(put)(slots_BGSK, new, jnp.repeat(slot, heads) if flat else slot)

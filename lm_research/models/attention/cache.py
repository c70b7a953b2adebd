"""A cache of keys and values: it only stores, in S slots a row, and hands out those that are read.

New tokens take consecutive slots; the caller gives which slots a token sees and its distance from them
(`CacheSlots`). So one cache serves prompts (L tokens that see their past), single tokens, the beams of a row (L tokens at one
place, each with its own ancestors), and candidates that are tried and dropped. Keys and values of an encoder's states are a
cache too, to which nothing is added.

A layer that sees the latest `window` positions only keeps fewer than S slots (`capacity`): slot s is at entry s mod C of its
arrays, where it replaces a slot that no later token sees. Beams have two such rings: one for the prompt that they share, which is
written once, and one for their own tokens. Callers number slots as if all were kept.

Legend: B rows, L new tokens, S slots, C entries of a layer's arrays (S without a window), M places of an encoder's row, G key/value
heads, K head width, N layers.
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
    """Keys and values of each layer [B, G, C, K], and those of the encoder's states [B, G, M, K].

    Layers that are apart have rows and heads as one axis, [B x G, C, K]: so XLA's products take them. If it has to reshape what
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
    """Where L new tokens are, and what they see.

    slot: the first of the L slots they take: a number, or [B].
    positions_BL: position ids.
    visible_BLS: which slots each sees, its own among them; B may be 1. S may be less than the cache has: the rest is
      not read. S = L is a prompt: the first tokens of all.
    distance_BLS: its place minus theirs, for windows and relative positions; B may be 1, negative ones do not matter.
    shared: of beams, how many slots their prompt has.
    end_B: the number of tokens in each row of a prompt that has padding behind them.
    """

    slot: jax.Array
    positions_BL: jax.Array
    visible_BLS: jax.Array
    distance_BLS: jax.Array
    shared: int = 0
    end_B: jax.Array | None = None

    @property
    def is_prompt(self) -> bool:
        return self.positions_BL.shape[1] == self.visible_BLS.shape[-1]

    def in_order(self, window: int, size: int) -> bool:
        """Whether the slots that are read are the first of a layer's `size` entries, each in its place."""
        return self.visible_BLS.shape[-1] <= size and (not window or self.shared < window)

    def entries_from(self, window: int, size: int) -> jax.Array:
        """The L entries that the new tokens take in a layer's rings, [L] or [B, L]."""
        first = min(self.shared, window - 1)
        return first + (self.slot[..., None] - self.shared + jnp.arange(self.positions_BL.shape[1])) % (size - first)

    def held(self, window: int, size: int) -> jax.Array | None:
        """The slot in each entry of a layer once the new tokens are written, [1 or B, C], -1 where there is none.

        None where the slots are in order, or a prompt reads itself.
        """
        if self.is_prompt or self.in_order(window, size):
            return None
        first = min(self.shared, window - 1)
        last_B1 = jnp.reshape(self.slot, (-1, 1)) + self.positions_BL.shape[1] - 1 - self.shared
        own_BC = _ring(last_B1, size - first)
        own_BC = jnp.where(own_BC < 0, -1, own_BC + self.shared)
        prompt_BC = jnp.broadcast_to(_ring(jnp.array(self.shared - 1), first), (len(own_BC), first))
        return jnp.concatenate([prompt_BC, own_BC], axis=1)


def capacity(window: int, slots: int, step: int = 0, shared: int = 0) -> int:
    """How many slots a layer keeps: all that a token can see, while the `step` newest are written.

    Args:
      window: the latest positions that it sees; 0 is all.
      slots: S.
      step: how many tokens come at once, after the prompt; 0 if it is not known, which keeps all.
      shared: of beams, how many of the slots are their prompt's; the `step` tokens have one position then.
    """
    if not (window and step):
        return slots
    if shared:
        return min(shared, window - 1) + min(slots - shared, window * step)
    return min(slots, window + step - 1)


def _ring(last: jax.Array, size: int) -> jax.Array:
    """The number in each entry of a ring when `last` was the last one written, [..., size]; below 0 where none was."""
    return last - (last - jnp.arange(size)) % max(1, size)


@dataclasses.dataclass
class LayerCache:
    """One layer's keys and values [B, G, C, K] (or [B x G, C, K]) while it runs on new tokens.

    Attributes:
      key, value: all entries; `update` replaces them.
      slots: where the new tokens are; None adds nothing, as to an encoder's.
      window: the latest positions that the layer sees; 0 is all.
    """

    key: jax.Array
    value: jax.Array
    slots: CacheSlots | None = None
    window: int = 0

    def update(self, key_BLGK: jax.Array, value_BLGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Stores those of new tokens, and gives what is attended over."""
        slots, size = self.slots, self.key.shape[-2]
        assert slots is not None
        key_BGLK, value_BGLK = key_BLGK.swapaxes(1, 2), value_BLGK.swapaxes(1, 2)
        if slots.in_order(self.window, size):
            self.key, self.value = write(self.key, key_BGLK, slots.slot), write(self.value, value_BGLK, slots.slot)
            span = slots.visible_BLS.shape[-1]
            return self.key[..., :span, :], self.value[..., :span, :]
        if slots.is_prompt:  # longer than what is kept of it
            self.key, self.value = self._latest(self.key, key_BGLK), self._latest(self.value, value_BGLK)
            return key_BGLK, value_BGLK
        at = slots.entries_from(self.window, size)
        self.key, self.value = write_at(self.key, key_BGLK, at), write_at(self.value, value_BGLK, at)
        return self.key, self.value

    def _latest(self, entries_BGCK: jax.Array, prompt_BGLK: jax.Array) -> jax.Array:
        """The entries with the end of a prompt in its ring."""
        slots, size = self.slots, entries_BGCK.shape[-2]
        assert slots is not None
        count = min(slots.shared, self.window - 1) if slots.shared else size
        last = jnp.array([prompt_BGLK.shape[2]]) if slots.end_B is None else slots.end_B
        kept_BC = jnp.maximum(_ring(last[:, None] - 1, count), 0)  # before the first slot is nothing that is ever seen
        latest_BGCK = jnp.take_along_axis(prompt_BGLK, kept_BC[:, None, :, None], axis=2)
        return write(entries_BGCK, latest_BGCK, jnp.int32(0))


def write(slots_BGSK: jax.Array, new_BGLK: jax.Array, slot: jax.Array) -> jax.Array:
    """Puts L entries into each row from `slot` on: a number, or [B]. The cache may have rows and heads as one axis."""
    new, slot = _as_rows(slots_BGSK, new_BGLK, slot)
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots_BGSK, new, slot, axis=slots_BGSK.ndim - 2)

    def put(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=row.ndim - 2)

    return jax.vmap(put)(slots_BGSK, new, slot)


def write_at(slots_BGSK: jax.Array, new_BGLK: jax.Array, entries: jax.Array) -> jax.Array:
    """Puts L entries into each row at `entries` [L] or [B, L], which need not be neighbors."""
    if entries.shape[-1] == 1:
        return write(slots_BGSK, new_BGLK, entries[..., 0])
    new, entries = _as_rows(slots_BGSK, new_BGLK, entries, 1)

    def put(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return row.at[..., at, :].set(new, unique_indices=True)

    return put(slots_BGSK, new, entries) if entries.ndim == 1 else jax.vmap(put)(slots_BGSK, new, entries)


def _as_rows(
    slots_BGSK: jax.Array, new_BGLK: jax.Array, where: jax.Array, axes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """New entries, and where they go, with rows and heads as one axis if the cache has them so. `axes` of `where` are not rows."""
    if slots_BGSK.ndim == 4:
        return new_BGLK, where
    new = jax.lax.collapse(new_BGLK, 0, 2)
    return new, where if jnp.ndim(where) == axes else jnp.repeat(where, new_BGLK.shape[1], axis=0)

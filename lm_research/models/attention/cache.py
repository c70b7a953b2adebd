"""A cache of keys and values with S slots per sequence.

New tokens take consecutive slots; the caller gives the slots that each token attends to, and its distance from them (`CacheSlots`).
So one cache serves prompts (L tokens that attend to their past), single tokens, the beams of a sequence (L tokens at one position,
each with its own ancestors), and candidates that may be rejected. The keys and values of an encoder's states are a cache too, to
which nothing is added.

A layer that attends to the latest `window` positions only stores fewer than S slots (`capacity`): slot s is stored in entry s mod C of
its arrays, where it replaces a slot that no later token attends to. Beams have two such rings: one for the prompt that they share,
which is written once, and one for their own tokens. Callers number slots as if all were stored.

Legend: lm_research/models/__init__.py; here L is new tokens, S slots, C entries of a layer's arrays (S without a window), and M
positions of the encoder.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# An array per layer; where layers run in a loop, per segment and layer of its period, [repetitions, ...] (layer_plan.py).
Layers = tuple[Any, ...]
Pairs = tuple[tuple[Any, Any], ...]  # keys and values of layers


class Cache(NamedTuple):
    """Keys and values of each layer [B, G, C, K], and those of the encoder's states [B, G, M, K].

    Unstacked layers merge batch and heads into one axis, [B x G, C, K], the form that XLA's batched products take. If XLA has to
    reshape or convert an array that was just written, it fuses the write into every reader, each time with a copy of the whole array. So
    these arrays are in float32, to which XLA converts bfloat16 for such products on CPUs.
    """

    keys: Layers
    values: Layers
    cross_keys: Layers = ()
    cross_values: Layers = ()
    memory_mask_BM: jax.Array | None = None
    first_B: jax.Array | None = None  # the position of each sequence's first token, where it is not 0

    def segment(self, index: int) -> tuple[Pairs, Pairs | None]:
        """Pairs of keys and values of each layer of a segment, and those of the encoder's states."""
        pairs = tuple(zip(self.keys[index], self.values[index], strict=True))
        if not self.cross_keys:
            return pairs, None
        return pairs, tuple(zip(self.cross_keys[index], self.cross_values[index], strict=True))

    def with_segments(self, segments: list[tuple[Pairs, Pairs | None]]) -> Cache:
        """Copy with the keys and values of all segments, each in the form that `segment` returns."""
        keys, values = (tuple(tuple(pair[part] for pair in pairs) for pairs, _ in segments) for part in (0, 1))
        return self._replace(keys=keys, values=values)


class CacheSlots(NamedTuple):
    """The slots of L new tokens, and those they attend to.

    Attributes:
      slot: the first of the L slots that the tokens take, a scalar or [B].
      positions_BL: position ids.
      visible_BLS: whether each token attends to each slot, its own included; B may be 1. S may be smaller than the cache, whose
        other slots are not read then. S = L is a prompt, which starts the sequences.
      distance_BLS: position of each token minus that of each slot, for windows and relative positions; B may be 1, and negative values
        are ignored.
      shared: number of slots of the prompt that beams share.
      end_B: number of tokens of each prompt without its padding on the right.
    """

    slot: jax.Array
    positions_BL: jax.Array
    visible_BLS: jax.Array
    distance_BLS: jax.Array
    shared: int = 0
    end_B: jax.Array | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether the new tokens are the first of their sequences."""
        return self.positions_BL.shape[1] == self.visible_BLS.shape[-1]

    def in_order(self, window: int, size: int) -> bool:
        """Whether slot s is in entry s of a layer with `size` entries, for all slots that are read."""
        return self.visible_BLS.shape[-1] <= size and (not window or self.shared < window)

    def new_entries(self, window: int, size: int) -> jax.Array:
        """The entries of a layer's rings that the new tokens take, [L] or [B, L]."""
        first = min(self.shared, window - 1)
        return first + (self.slot[..., None] - self.shared + jnp.arange(self.positions_BL.shape[1])) % (size - first)

    def slot_of_entry(self, window: int, size: int) -> jax.Array | None:
        """The slot in each entry of a layer after the new tokens are written, [1 or B, C]; -1 in empty entries.

        None if the slots are in order, or if a prompt attends to its own keys instead of the cache.
        """
        if self.is_prompt or self.in_order(window, size):
            return None
        first = min(self.shared, window - 1)
        last_B1 = jnp.reshape(self.slot, (-1, 1)) + self.positions_BL.shape[1] - 1 - self.shared
        generated_BC = _ring(last_B1, size - first)
        generated_BC = jnp.where(generated_BC < 0, -1, generated_BC + self.shared)
        prompt_BC = jnp.broadcast_to(_ring(jnp.array(self.shared - 1), first), (len(generated_BC), first))
        return jnp.concatenate([prompt_BC, generated_BC], axis=1)


def capacity(window: int, slots: int, step: int = 0, shared: int = 0) -> int:
    """Number of slots that a layer stores: all that a token attends to, and those of the `step` newest tokens.

    Args:
      window: number of latest positions that the layer attends to; 0 is all.
      slots: S.
      step: number of tokens per call after the prompt; 0 if it is unknown, in which case all slots are stored.
      shared: number of slots of the prompt that beams share; then the `step` tokens have one position.
    """
    if not (window and step):
        return slots
    if shared:
        return min(shared, window - 1) + min(slots - shared, window * step)
    return min(slots, window + step - 1)


def _ring(last: jax.Array, size: int) -> jax.Array:
    """The slot in each entry of a ring after slot `last` is written, [..., size]; negative in empty entries."""
    return last - (last - jnp.arange(size)) % size


@dataclasses.dataclass
class LayerCache:
    """One layer's keys and values [B, G, C, K] (or [B x G, C, K]) while it runs on new tokens.

    Attributes:
      key, value: all entries; `update` replaces them.
      slots: slots of the new tokens; None for a read-only cache, as of an encoder's states.
      window: number of latest positions that the layer attends to; 0 is all.
    """

    key: jax.Array
    value: jax.Array
    slots: CacheSlots | None = None
    window: int = 0

    def update(self, key_BLGK: jax.Array, value_BLGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Store keys and values of new tokens, and return the keys and values to attend to."""
        slots, size = self.slots, self.key.shape[-2]
        assert slots is not None
        key_BGLK, value_BGLK = (x.swapaxes(1, 2).astype(self.key.dtype) for x in (key_BLGK, value_BLGK))
        if slots.in_order(self.window, size):
            self.key, self.value = write(self.key, key_BGLK, slots.slot), write(self.value, value_BGLK, slots.slot)
            span = slots.visible_BLS.shape[-1]
            return self.key[..., :span, :], self.value[..., :span, :]
        if slots.is_prompt:  # longer than the ring, which keeps its end
            self.key, self.value = self._latest(self.key, key_BGLK), self._latest(self.value, value_BGLK)
            return key_BGLK, value_BGLK
        entries = slots.new_entries(self.window, size)
        self.key, self.value = write_at(self.key, key_BGLK, entries), write_at(self.value, value_BGLK, entries)
        return self.key, self.value

    def _latest(self, entries_BGCK: jax.Array, prompt_BGLK: jax.Array) -> jax.Array:
        """The entries with the end of a prompt written into its ring."""
        slots, size = self.slots, entries_BGCK.shape[-2]
        assert slots is not None
        count = min(slots.shared, self.window - 1) if slots.shared else size
        last = jnp.array([prompt_BGLK.shape[2]]) if slots.end_B is None else slots.end_B
        kept_BC = jnp.maximum(_ring(last[:, None] - 1, count), 0)  # empty entries get a copy, which is masked
        latest_BGCK = jnp.take_along_axis(prompt_BGLK, kept_BC[:, None, :, None], axis=2)
        return write(entries_BGCK, latest_BGCK, jnp.int32(0))


def write(slots_BGSK: jax.Array, new_BGLK: jax.Array, slot: jax.Array) -> jax.Array:
    """Write L entries from `slot`, a scalar or [B]. The cache may merge batch and heads into one axis."""
    new, slot = _merge_heads(slots_BGSK, new_BGLK, slot)
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots_BGSK, new, slot, axis=slots_BGSK.ndim - 2)

    def put(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=row.ndim - 2)

    return jax.vmap(put)(slots_BGSK, new, slot)


def write_at(slots_BGSK: jax.Array, new_BGLK: jax.Array, entries: jax.Array) -> jax.Array:
    """Write L entries to `entries` [L] or [B, L], which need not be adjacent."""
    if entries.shape[-1] == 1:
        return write(slots_BGSK, new_BGLK, entries[..., 0])
    new, entries = _merge_heads(slots_BGSK, new_BGLK, entries, 1)

    def put(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return row.at[..., at, :].set(new, unique_indices=True)

    return put(slots_BGSK, new, entries) if entries.ndim == 1 else jax.vmap(put)(slots_BGSK, new, entries)


def _merge_heads(
    slots_BGSK: jax.Array, new_BGLK: jax.Array, target: jax.Array, axes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """New entries and their target, with batch and heads merged if the cache merges them; `target` has `axes` axes without a batch."""
    if slots_BGSK.ndim == 4:
        return new_BGLK, target
    new = jax.lax.collapse(new_BGLK, 0, 2)
    return new, target if jnp.ndim(target) == axes else jnp.repeat(target, new_BGLK.shape[1], axis=0)

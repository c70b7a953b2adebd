"""Attention over sequences whose positions are divided over devices (ring attention, Liu et al. 2023, arXiv:2310.01889).

Each device keeps its own queries. Keys and values travel around the ring of the `context` axis, one device per step, and every device
adds their part of its queries' attention to an online softmax (Milakov and Gimelshein 2018). Scores are computed for one pair of shards
at a time, and the backward pass recomputes them, so memory grows linearly with a device's positions.

Legend: lm_research/models/__init__.py; inside `_ring`, B, L, S and H are one device's part.
"""

from __future__ import annotations

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm_research.models.activations import capped
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.layers import dropout
from lm_research.parallel.rules import RULES, partition_spec


class OnlineSoftmax(NamedTuple):
    """A running softmax in float32: highest score and sum of exponentials [B, H, L], and values weighted by them [B, H, L, K]."""

    highest: jax.Array
    total: jax.Array
    mixed: jax.Array


Part = TypeVar("Part")


class KeyValueShard(NamedTuple, Generic[Part]):
    """The shard that travels around the ring: keys and values [B, S, H, K], segments and prefixes [B, S], biases [B, H, S]; or their partition specs."""

    key: Part
    value: Part
    segments: Part
    prefix: Part | None
    bias: Part | None


Carried = tuple[OnlineSoftmax, KeyValueShard[jax.Array]]


def ring_attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    mask: AttentionMask,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    score_cap: float = 0.0,
) -> jax.Array:
    """`module.reference_attention` of sequences that are divided over the current mesh's `context` axis; equal up to rounding.

    Args:
      query_BLHK: queries of whole sequences, already scaled.
      key_BSHK: keys of whole sequences.
      value_BSHK: values of whole sequences.
      mask: the mask of whole sequences.
      dropout_rate: dropout on the probabilities; the same ones are dropped as without a ring.
      dropout_key: PRNG key for dropout; None disables it.
      score_cap: soft cap c of the scores, c tanh(score / c); 0 for none.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    mesh = jax.sharding.get_abstract_mesh()
    heads, positions = (partition_spec(axes) for axes in (("batch", "length", "act_heads", None), ("batch", "length")))
    distances = PartitionSpec(RULES["act_heads"]) if mask.distances_HX is not None else None
    biases = partition_spec(("batch", "act_heads", "length")) if mask.key_bias_BHS is not None else None
    static = dict(causal=mask.causal, window=mask.window, window_ahead=mask.window_ahead)
    whole = (query_BLHK.shape[0], query_BLHK.shape[2], query_BLHK.shape[1], key_BSHK.shape[1])
    shard = KeyValueShard(key_BSHK, value_BSHK, mask.key_segments_BS, mask.prefix_BS, mask.key_bias_BHS)
    run = jax.shard_map(
        functools.partial(_ring, static, whole, (dropout_rate, score_cap), mesh.shape["context"]),
        mesh=mesh,
        in_specs=(
            heads,
            KeyValueShard(heads, heads, positions, positions if mask.prefix_BS is not None else None, biases),
            positions,
            distances,
            PartitionSpec() if dropout_key is not None else None,
        ),
        out_specs=heads,
        check_vma=False,
    )
    return run(query_BLHK, shard, mask.query_segments_BL, mask.distances_HX, dropout_key)


def _ring(
    static: dict[str, Any],
    whole: tuple[int, ...],
    rates: tuple[float, float],
    parts: int,
    query_BLHK: jax.Array,
    shard: KeyValueShard[jax.Array],
    segments_BL: jax.Array,
    distances_HX: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """Run one device's program; `whole` is the shape [B, H, L, S] of all devices' scores together."""
    rate, cap = rates
    device = jax.lax.axis_index(RULES["length"])
    batch, length, heads, width = query_BLHK.shape
    first_row, first_head = (
        jax.lax.axis_index(RULES[axis]) * n for axis, n in (("batch", batch), ("act_heads", heads))
    )
    query_BHLK = query_BLHK.swapaxes(1, 2)

    @jax.checkpoint  # the backward pass recomputes the scores
    def add(sums: OnlineSoftmax, shard: KeyValueShard[jax.Array], source: jax.Array) -> OnlineSoftmax:
        """Add the keys and values that device `source` held at the start."""
        first_key = source * shard.key.shape[1]
        mask = AttentionMask(
            segments_BL,
            shard.segments,
            prefix_BS=shard.prefix,
            distances_HX=distances_HX,
            key_bias_BHS=shard.bias,
            **static,
        )
        keys_BHSK, values_BHSK = shard.key.swapaxes(1, 2), shard.value.swapaxes(1, 2)
        scores = jnp.einsum("BHLK,BHSK->BHLS", query_BHLK, keys_BHSK, preferred_element_type=jnp.float32)
        scores = capped(scores, cap) + mask.bias(device * length, first_key)
        # The result does not depend on the maximum that is subtracted, so no gradient flows through it.
        highest = jax.lax.stop_gradient(jnp.maximum(sums.highest, scores.max(-1)))
        weights, shrink = jnp.exp(scores - highest[..., None]), jnp.exp(sums.highest - highest)
        total = sums.total * shrink + weights.sum(-1)
        weights = dropout(weights, rate, key, whole, (first_row, first_head, device * length, first_key))
        weights = weights.astype(shard.value.dtype)
        new = jnp.einsum("BHLS,BHSK->BHLK", weights, values_BHSK, preferred_element_type=jnp.float32)
        return OnlineSoftmax(highest, total, sums.mixed * shrink[..., None] + new)

    def step(carry: Carried, number: jax.Array) -> tuple[Carried, None]:
        sums, shard = carry  # the shard is sent and added at the same time: neither waits for the other
        following = jax.lax.ppermute(shard, RULES["length"], [(i, (i + 1) % parts) for i in range(parts)])
        return (add(sums, shard, (device - number) % parts), following), None

    zeros = jnp.zeros((batch, heads, length), jnp.float32)
    sums = OnlineSoftmax(zeros - jnp.inf, zeros, jnp.zeros((batch, heads, length, width), jnp.float32))
    (sums, shard), _ = jax.lax.scan(step, (sums, shard), jnp.arange(parts - 1))
    sums = add(sums, shard, (device + 1) % parts)
    return (sums.mixed / sums.total[..., None]).swapaxes(1, 2).astype(shard.value.dtype)

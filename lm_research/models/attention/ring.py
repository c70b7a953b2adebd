"""Attention over rows whose positions are divided over devices (ring attention, Liu et al. 2023, arXiv:2310.01889).

Each device keeps its own queries. Keys and values go round the ring of the `context` axis, one device further each turn, and
every device adds what its queries see of them to a running softmax (Milakov and Gimelshein 2018). Scores are never made
for more than one pair of parts at a time, and the backward pass makes them again instead of keeping them, so memory
grows with a device's positions and not with the row's square.

Legend: B batch, L query length, S key length, H heads, K head width; all of a device's part.
"""

from __future__ import annotations

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm_research.models.attention.mask import AttentionMask
from lm_research.models.layers import capped, dropout
from lm_research.parallel.rules import RULES, partition_spec


class OnlineSoftmax(NamedTuple):
    """A softmax under way: highest score and sum of exponentials [B, H, L], and values mixed by these [B, H, L, K]; float32."""

    highest: jax.Array
    total: jax.Array
    mixed: jax.Array


Part = TypeVar("Part")


class KeyValueShard(NamedTuple, Generic[Part]):
    """What goes round: keys and values [B, S, H, K], their segments and prefixes [B, S]; or of each how it is divided."""

    key: Part
    value: Part
    segments: Part
    prefix: Part | None


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
    """`attention.attend` of whole rows that lie in parts on the current mesh's `context` axis; equal but for rounding.

    Args:
      query_BLHK, key_BSHK, value_BSHK: of whole rows; the queries already scaled.
      mask: what is seen; its arrays are of whole rows.
      dropout_rate, dropout_key: dropout on the probabilities, the same ones as without a ring; a None key applies none.
      score_cap: scores become cap tanh(score / cap); 0 leaves them.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    mesh = jax.sharding.get_abstract_mesh()
    heads, places = (partition_spec(axes) for axes in (("batch", "length", "act_heads", None), ("batch", "length")))
    distances = PartitionSpec(RULES["act_heads"]) if mask.distances_HX is not None else None
    static = dict(causal=mask.causal, window=mask.window)
    whole = (query_BLHK.shape[0], query_BLHK.shape[2], query_BLHK.shape[1], key_BSHK.shape[1])
    passed = KeyValueShard(key_BSHK, value_BSHK, mask.key_segments_BS, mask.prefix_BS)
    run = jax.shard_map(
        functools.partial(_ring, static, whole, (dropout_rate, score_cap), mesh.shape["context"]),
        mesh=mesh,
        in_specs=(
            heads,
            KeyValueShard(heads, heads, places, places if mask.prefix_BS is not None else None),
            places,
            distances,
            PartitionSpec() if dropout_key is not None else None,
        ),
        out_specs=heads,
        check_vma=False,
    )
    return run(query_BLHK, passed, mask.query_segments_BL, mask.distances_HX, dropout_key)


def _ring(
    static: dict[str, Any],
    whole: tuple[int, ...],
    rates: tuple[float, float],
    parts: int,
    query_BLHK: jax.Array,
    passed: KeyValueShard[jax.Array],
    segments_BL: jax.Array,
    distances_HX: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """One device's program; `whole` is the shape [B, H, L, S] of all devices' scores together."""
    rate, cap = rates
    mine = jax.lax.axis_index(RULES["length"])
    batch, length, heads, width = query_BLHK.shape
    first_row, first_head = (
        jax.lax.axis_index(RULES[axis]) * n for axis, n in (("batch", batch), ("act_heads", heads))
    )
    query_BHLK = query_BLHK.swapaxes(1, 2)

    @jax.checkpoint  # scores are made again in the backward pass
    def add(sums: OnlineSoftmax, passed: KeyValueShard[jax.Array], source: jax.Array) -> OnlineSoftmax:
        """The running softmax with the keys and values that device `source` began with."""
        first_key = source * passed.key.shape[1]
        mask = AttentionMask(segments_BL, passed.segments, prefix_BS=passed.prefix, distances_HX=distances_HX, **static)
        scores = jnp.einsum(
            "BHLK,BHSK->BHLS", query_BHLK, passed.key.swapaxes(1, 2), preferred_element_type=jnp.float32
        )
        scores = capped(scores, cap) + mask.bias(mine * length, first_key)
        # The result does not depend on what is subtracted, so nothing needs its gradient.
        highest = jax.lax.stop_gradient(jnp.maximum(sums.highest, scores.max(-1)))
        shares, shrink = jnp.exp(scores - highest[..., None]), jnp.exp(sums.highest - highest)
        total = sums.total * shrink + shares.sum(-1)
        shares = dropout(shares, rate, key, whole, (first_row, first_head, mine * length, first_key))
        shares = shares.astype(passed.value.dtype)
        new = jnp.einsum("BHLS,BHSK->BHLK", shares, passed.value.swapaxes(1, 2), preferred_element_type=jnp.float32)
        return OnlineSoftmax(highest, total, sums.mixed * shrink[..., None] + new)

    def turn(carry: Carried, number: jax.Array) -> tuple[Carried, None]:
        sums, passed = carry  # passed on and added at once: neither waits for the other
        following = jax.lax.ppermute(passed, RULES["length"], [(i, (i + 1) % parts) for i in range(parts)])
        return (add(sums, passed, (mine - number) % parts), following), None

    none = jnp.zeros((batch, heads, length), jnp.float32)
    sums = OnlineSoftmax(none - jnp.inf, none, jnp.zeros((batch, heads, length, width), jnp.float32))
    (sums, passed), _ = jax.lax.scan(turn, (sums, passed), jnp.arange(parts - 1))
    sums = add(sums, passed, (mine + 1) % parts)
    return (sums.mixed / sums.total[..., None]).swapaxes(1, 2).astype(passed.value.dtype)

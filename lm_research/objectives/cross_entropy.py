"""Softmax cross-entropy of tokens, from hidden states instead of logits.

The logits of a batch are its largest array by far (positions x vocabulary), and the gradient with respect to them
needs nothing but themselves. So the vocabulary projection, the loss and the gradient are made together in the forward
pass, a slice of positions at a time: three matrix products, no recomputation, and never more than a slice of
logits in memory. The backward pass only scales what the forward pass kept.

Legend: B batch, M predicted positions, R rows (positions of all examples), D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm_research.models.heads import Projection
from lm_research.models.layers import capped
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, context_size, flatten_rows

# Rows of logits made at a time on one device. Measured on a CPU at V = 50257: 512 is the fastest for D = 128 and 256
# (25% under all 2,048 rows at once), equal for D = 512; under 128 rows the table is streamed too often. Accelerators want
# more, since each slice adds to a gradient of the table's size: 4,096 rows of V = 50304 are 0.8 GB.
SLICE_ROWS = 512
ACCELERATOR_SLICES = 8  # times as long
# GPUs multiply matrices whose rows are not whole words at a fraction of the speed: there V is filled up to a multiple.
GPU_VOCAB_MULTIPLE = 128

Arrays = tuple[jax.Array, ...]


class TokenLoss(NamedTuple):
    """Sums over positions: nats and correctly predicted tokens, both weighted."""

    loss: jax.Array
    correct: jax.Array


def token_loss(projection: Projection, targets_BM: jax.Array, weights_BM: jax.Array) -> TokenLoss:
    """Weighted sums of -log softmax(logits)[target] and of whether the target has the highest logit.

    Args:
      projection: hidden states [B, M, D] and the tied table [V, D].
      targets_BM: token ids.
      weights_BM: float weights; 0 leaves a position out.
    """
    hidden_BMD, table_VD, bias_V, cap = projection  # D is the table's width here
    table_VD = constrain(table_VD, "vocab", None)
    if context_size() > 1:  # which shares any number of positions once some without weight fill it up
        room = [(0, 0), (0, -targets_BM.shape[1] % context_size())]
        targets_BM, weights_BM = jnp.pad(targets_BM, room), jnp.pad(weights_BM, room)
        hidden_BMD = jnp.pad(hidden_BMD, [*room, (0, 0)])
    vocab_size, fill = len(table_VD), -len(table_VD) % GPU_VOCAB_MULTIPLE
    if fill and platform() == "gpu":
        table_VD = jnp.pad(table_VD, [(0, fill), (0, 0)])
        bias_V = None if bias_V is None else jnp.pad(bias_V, (0, fill))
    hidden_RD, targets_R, weights_R = map(flatten_rows, (hidden_BMD, targets_BM, weights_BM))
    return TokenLoss(*_token_loss((vocab_size, cap), hidden_RD, table_VD, bias_V, targets_R, weights_R))


def smoothing(projection: Projection, targets_BM: jax.Array, weights_BM: jax.Array) -> jax.Array:
    """What label smoothing adds for each unit of probability that it spreads evenly over the vocabulary (Szegedy et al. 2016).

    The cross-entropy with (1 - e) of the probability on the target and e on all tokens alike is that with the target alone plus
    e (its logit - the mean logit). The mean of all logits is one product with the mean row of the table, so none are made here.

    Returns:
      The weighted sum of that difference over positions, in nats.
    """
    hidden_BMD, table_VD, bias_V, cap = projection
    if cap:  # the mean of capped logits is no product
        logits_BMV = projection.logits()
        chosen_BM = jnp.take_along_axis(logits_BMV, targets_BM[..., None], axis=-1)[..., 0]
        return (weights_BM * (chosen_BM - logits_BMV.mean(-1))).sum()
    gap_BMD = jnp.take(table_VD, targets_BM, axis=0) - table_VD.mean(0)
    gap_BM = jnp.einsum("BMD,BMD->BM", hidden_BMD.astype(jnp.float32), gap_BMD.astype(jnp.float32))
    if bias_V is not None:
        gap_BM += jnp.take(bias_V, targets_BM) - bias_V.mean()
    return (weights_BM * gap_BM).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(
    static: tuple[int, float | None],
    hidden_RD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    targets_R: jax.Array,
    weights_R: jax.Array,
) -> Arrays:
    """The sums, of a table whose rows from the first number on are no tokens, and whose logits the second one caps."""
    table = table_VD.astype(hidden_RD.dtype)

    def sums(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> Arrays:
        return _sums(static, hidden, targets, weights, table, bias_V)[0]

    loss, correct = _map_slices(sums, hidden_RD, targets_R, weights_R)
    return loss.sum(), correct.sum()


def _forward(
    static: tuple[int, float | None],
    hidden_RD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
    targets_R: jax.Array,
    weights_R: jax.Array,
) -> tuple[Arrays, tuple[Any, ...]]:
    table = table_VD.astype(hidden_RD.dtype)

    def work(shared: Arrays, rows: Arrays) -> tuple[Arrays, Arrays]:
        hidden, targets, weights = rows
        sums, exp, total, slope = _sums(static, hidden, targets, weights, table, bias_V)
        # d loss / d logits = weights (exp / total - one_hot(target)), times the slope of the cap. Both factors around exp are applied to the small
        # sides of its products; the one-hot part touches one row of the table a position and is added afterwards.
        scale = weights / total
        if slope is not None:
            exp, weights = exp * slope, weights * jnp.take_along_axis(slope, targets[:, None], axis=1)[:, 0]
        exp_low, scaled = exp.astype(hidden.dtype), (scale[:, None] * hidden).astype(hidden.dtype)
        hidden_gradient = scale[:, None] * jnp.dot(exp_low, table, preferred_element_type=jnp.float32)
        hidden_gradient -= weights[:, None] * jnp.take(table, targets, axis=0)
        # As [D, V], to be transposed once at the end, and from a transposed copy of the small factor: on a CPU the product for
        # [V, D], and one that contracts the rows of both factors (XLA makes that of a bare .T), run at half the speed.
        small_DR = jax.lax.optimization_barrier(scaled.T)
        added: Arrays = (jnp.dot(small_DR, exp_low, preferred_element_type=jnp.float32),)
        if bias_V is not None:
            # Not (scale * exp).sum(0): XLA's CPU compiler makes that 10 to 30 times slower.
            added += (jnp.dot(scale, exp, precision=jax.lax.Precision.HIGHEST),)
        shared = tuple(map(jnp.add, shared, added)) if shared else added
        return shared, (*sums, hidden_gradient.astype(hidden.dtype), weights)

    slices = _slices(hidden_RD, targets_R, weights_R)
    if len(slices[0]) == 1:  # no loop, and no zeros to add to
        shared, kept = work((), jax.tree.map(lambda x: x[0], slices))
    else:
        shapes = (table_VD.shape[::-1],) if bias_V is None else (table_VD.shape[::-1], bias_V.shape)
        shared, kept = jax.lax.scan(work, tuple(jnp.zeros(shape, jnp.float32) for shape in shapes), slices)
    loss, correct, hidden_gradient, chosen = kept
    weights_R = chosen.reshape(-1)[: len(hidden_RD)]
    hidden_gradient = hidden_gradient.reshape(-1, hidden_RD.shape[1])[: len(hidden_RD)]
    bias_gradient = None if bias_V is None else shared[1].at[targets_R].add(-weights_R)
    table = jnp.zeros((), table_VD.dtype)  # of which the backward pass needs the type alone
    return (loss.sum(), correct.sum()), (
        hidden_gradient,
        shared[0],
        bias_gradient,
        hidden_RD,
        targets_R,
        weights_R,
        table,
    )


def _backward(static: tuple[int, float | None], kept: tuple[Any, ...], cotangents: Arrays) -> tuple[Any, ...]:
    hidden_gradient, table_DV, bias_gradient, hidden_RD, targets_R, weights_R, table = kept
    # The second output counts; it has no gradient. The scale stays in float32: rounded to bfloat16 it would be up to 0.4%
    # off, for every element alike.
    scale = cotangents[0]
    chosen_RD = (scale * weights_R)[:, None] * hidden_RD.astype(jnp.float32)
    # Scaled and transposed in one pass over the table. Behind the barrier, because XLA would fold the transposition back
    # into the product.
    table_gradient = scale * jax.lax.optimization_barrier(table_DV).T
    table_gradient = table_gradient.at[targets_R].add(-chosen_RD).astype(table.dtype)
    bias_gradient = None if bias_gradient is None else scale * bias_gradient
    return (scale * hidden_gradient).astype(hidden_gradient.dtype), table_gradient, bias_gradient, None, None


_token_loss.defvjp(_forward, _backward)


def _sums(
    static: tuple[int, float | None],
    hidden_RD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array | None,
) -> tuple[Arrays, jax.Array, jax.Array, jax.Array | None]:
    """(loss, correct) of a slice, exp(logits - largest) [R, V] with its sum over V, and the slope [R, V] of a cap, if there is one."""
    vocab_size, cap = static
    logits_RV = jnp.dot(hidden_RD, table_VD.T, preferred_element_type=jnp.float32)
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    logits_RV = capped(logits_RV, cap)
    slope_RV = 1.0 - jnp.square(logits_RV / cap) if cap else None
    if vocab_size < len(table_VD):
        logits_RV = jnp.where(jnp.arange(len(table_VD)) < vocab_size, logits_RV, -jnp.inf)
    largest_R = logits_RV.max(-1)
    exp_RV = jnp.exp(logits_RV - largest_R[:, None])
    total_R = exp_RV.sum(-1)
    target_R = jnp.take_along_axis(logits_RV, targets_R[:, None], axis=1)[:, 0]
    loss = (weights_R * (largest_R + jnp.log(total_R) - target_R)).sum()
    correct = (weights_R * (target_R >= largest_R)).sum()
    return (loss, correct), exp_RV, total_R, slope_RV


def slice_rows(where: str) -> int:
    """Rows of logits made at a time on one device of a platform."""
    return SLICE_ROWS if where == "cpu" else ACCELERATOR_SLICES * SLICE_ROWS


def _slices(*rows: jax.Array) -> Arrays:
    """[R, ...] cut into [slices, R / slices, ...]; rows that fill up the last slice are zeros (weight 0).

    One slice on a mesh of several devices, where the table's gradient would be summed over devices in each.
    """
    count = 1
    if jax.sharding.get_abstract_mesh().size <= 1:
        count = max(1, round(len(rows[0]) / slice_rows(platform())))
    padding = -len(rows[0]) % count

    def cut(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(count, -1, *x.shape[1:])

    return tuple(map(cut, rows))


def _map_slices(work: Callable[..., Arrays], *rows: jax.Array) -> Arrays:
    """`work` over slices of rows, one after the other."""
    slices = _slices(*rows)
    if len(slices[0]) == 1:
        return work(*(x[0] for x in slices))
    return jax.lax.map(lambda xs: work(*xs), slices)

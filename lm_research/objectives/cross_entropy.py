"""Softmax cross-entropy of tokens, from hidden states instead of logits.

The logits of a batch are its largest array by far (positions x vocabulary), and the gradient with respect to them
depends only on the logits. So the forward pass computes the vocabulary projection, the loss and the gradient together,
one slice of positions at a time: three matrix products, no recomputation, and at most one slice of
logits in memory. The backward pass only scales the stored gradient.

Legend: B batch, M predicted positions, R rows (positions of all examples), D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from lm_research.models.activations import capped
from lm_research.models.cpu_products import multiplies_bfloat16, transposed
from lm_research.models.embeddings import look_up
from lm_research.models.heads import Projection
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, context_size, flatten_rows, per_part

# Rows of logits that one device computes at a time. Measured on a CPU at V = 50257: 512 is the fastest for D = 128 and 256
# (25% less time than all 2,048 rows at once), equal for D = 512; below 128 rows the table is streamed too often. Accelerators need
# more, because each slice adds to a gradient of the table's size: 4,096 rows of V = 50304 are 0.8 GB.
SLICE_ROWS = 512
ACCELERATOR_SLICES = 8  # factor on SLICE_ROWS
# GPUs, and CPUs in bfloat16, multiply matrices with unaligned rows at a fraction of the speed, so there V is padded to a multiple.
ALIGNED_VOCAB_MULTIPLE = 128

# Windows of _log_sum_exp: half of the width of one, in nats, and their number. exp(72) times 8 million is below the largest float32.
HALF_WINDOW = 72.0
WINDOWS = 4

Arrays = tuple[jax.Array, ...]


class TokenLoss(NamedTuple):
    """Sums over positions: nats and correctly predicted tokens, both weighted."""

    loss: jax.Array
    correct: jax.Array


def token_loss(projection: Projection, targets_BM: jax.Array, weights_BM: jax.Array) -> TokenLoss:
    """Compute the weighted sums of -log softmax(logits)[target] and of whether the target has the highest logit.

    Args:
      projection: hidden states [B, M, D] and the tied table [V, D].
      targets_BM: token ids.
      weights_BM: float weights; 0 leaves a position out.
    """
    hidden_BMD, table_VD, bias_V, cap = projection  # D is the table's width here
    copies = table_VD.ndim - 2  # 1 if each part of the batch has its own
    table_VD = table_VD if copies else constrain(table_VD, "vocab", None)
    if context_size() > 1:  # pad with positions of weight 0 to a multiple of the mesh axis
        padding = [(0, 0), (0, -targets_BM.shape[1] % context_size())]
        targets_BM, weights_BM = jnp.pad(targets_BM, padding), jnp.pad(weights_BM, padding)
        hidden_BMD = jnp.pad(hidden_BMD, [*padding, (0, 0)])
    vocab_size = table_VD.shape[-2]
    fill = -vocab_size % ALIGNED_VOCAB_MULTIPLE
    if fill and platform() == "gpu":
        table_VD = jnp.pad(table_VD, [(0, 0)] * copies + [(0, fill), (0, 0)])
        bias_V = None if bias_V is None else jnp.pad(bias_V, (0, fill))
    rows = hidden_BMD, targets_BM, weights_BM
    sums = functools.partial(_token_loss, (vocab_size, cap))
    if not copies:
        hidden_RD, targets_R, weights_R = map(flatten_rows, rows)
        return TokenLoss(*sums(hidden_RD, table_VD, bias_V, targets_R, weights_R))

    def on_part(table_VD: jax.Array, rows: Arrays, bias_V: jax.Array | None) -> Arrays:
        hidden_RD, targets_R, weights_R = (x.reshape(-1, *x.shape[2:]) for x in rows)
        return tuple(x[None] for x in sums(hidden_RD, table_VD, bias_V, targets_R, weights_R))

    return TokenLoss(*(x_G.sum() for x_G in per_part(on_part, table_VD, rows, bias_V)))


def smoothing(projection: Projection, targets_BM: jax.Array, weights_BM: jax.Array) -> jax.Array:
    """Compute the loss that label smoothing adds per unit of smoothed probability (Szegedy et al. 2016).

    The cross-entropy with probability 1 - e on the target and e spread evenly over all tokens equals the plain cross-entropy plus
    e (target logit - mean logit). The mean logit is one product with the mean row of the table, so no other logits are computed.

    Returns:
      The weighted sum of that difference over positions, in nats.
    """
    hidden_BMD, table_VD, bias_V, cap = projection
    if cap:  # the mean of capped logits is not a matrix product
        logits_BMV = projection.logits()
        chosen_BM = jnp.take_along_axis(logits_BMV, targets_BM[..., None], axis=-1)[..., 0]
        return (weights_BM * (chosen_BM - logits_BMV.mean(-1))).sum()
    gap_BMD = look_up(table_VD, targets_BM)
    mean_D = table_VD.mean(-2)
    gap_BMD -= mean_D if mean_D.ndim == 1 else jnp.repeat(mean_D, len(gap_BMD) // len(mean_D), axis=0)[:, None]
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
    """Compute the two sums. `static` is (vocab_size, cap): later rows of the table are padding; `cap` bounds the logits."""
    table, columns, bias = _factors(hidden_RD.dtype, table_VD, bias_V)

    def sums(hidden: jax.Array, targets: jax.Array, weights: jax.Array) -> Arrays:
        return _sums(static, hidden, targets, weights, table, columns, bias)[0]

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
    table, columns, bias = _factors(hidden_RD.dtype, table_VD, bias_V)

    def accumulate(shared: Arrays, rows: Arrays) -> tuple[Arrays, Arrays]:
        hidden, targets, weights = rows
        sums, exp, total, at_target, slope = _sums(static, hidden, targets, weights, table, columns, bias)
        # d loss / d logits = weights (exp / total - one_hot(target)), times the slope of the cap. The factors of a row are applied to the small
        # sides of the products. Both terms of a confident prediction's target round to 1, but not their difference. TPUs put it into the place
        # of exp; elsewhere that takes longer, and the one-hot part is added to one row of the table a position afterwards.
        scale = weights / total
        if platform() == "tpu":
            is_target = jnp.arange(exp.shape[1]) == targets[:, None]
            exp = jnp.where(is_target, (at_target - total)[:, None], exp)
        if slope is not None:
            exp, slope = exp * slope, jnp.take_along_axis(slope, targets[:, None], axis=1)[:, 0]
            at_target, weights = at_target * slope, weights * slope
        exp_low, scaled = exp.astype(hidden.dtype), (scale[:, None] * hidden).astype(hidden.dtype)
        hidden_gradient = jnp.dot(exp_low, table, preferred_element_type=jnp.float32)
        if len(table) > len(table_VD):
            hidden_gradient -= (len(table) - len(table_VD)) * exp_low[:, :1].astype(jnp.float32) * table[0]
        hidden_gradient *= scale[:, None]
        added: Arrays = (_table_product(exp_low, scaled),)
        if bias_V is not None:
            # Not (scale * exp).sum(0): XLA's CPU compiler makes that 10 to 30 times slower.
            added += (jnp.dot(scale, exp, precision=jax.lax.Precision.HIGHEST),)
        chosen: Arrays = ()
        if platform() != "tpu":
            of_table, of_hidden = weights[:, None] * hidden, weights
            if hidden.dtype != jnp.float32:
                # What the products added for the target, less what they would have without rounding.
                rounded = at_target.astype(hidden.dtype).astype(jnp.float32)
                of_table += rounded[:, None] * scaled - (scale * at_target)[:, None] * hidden
                of_hidden += scale * (rounded - at_target)
            hidden_gradient -= of_hidden[:, None] * jnp.take(table_VD, targets, axis=0).astype(table.dtype)
            chosen = (of_table, weights)
        shared = tuple(map(jnp.add, shared, added)) if shared else added
        return shared, (*sums, hidden_gradient.astype(hidden.dtype), *chosen)

    slices = _slices(hidden_RD, targets_R, weights_R)
    if len(slices[0]) == 1:  # no loop, and no zeros to add to
        shared, only = accumulate((), jax.tree.map(lambda x: x[0], slices))
        outputs = jax.tree.map(lambda x: x[None], only)
    else:
        shape = table.shape if platform() == "tpu" else columns.shape
        shapes = (shape,) if bias is None else (shape, bias.shape)
        shared, outputs = jax.lax.scan(accumulate, tuple(jnp.zeros(shape, jnp.float32) for shape in shapes), slices)
    loss, correct, *rows = outputs
    hidden_gradient, *chosen = (x.reshape(-1, *x.shape[2:])[: len(hidden_RD)] for x in rows)
    bias_gradient = None if bias_V is None else shared[1][: len(bias_V)]
    if chosen and bias_gradient is not None:
        bias_gradient = bias_gradient.at[targets_R].add(-chosen[1])
    table = jnp.zeros((len(table_VD), 0), table_VD.dtype)  # carries length and dtype to the backward pass
    return (loss.sum(), correct.sum()), (hidden_gradient, shared[0], bias_gradient, chosen[:1], targets_R, table)


def _backward(static: tuple[int, float | None], residuals: tuple[Any, ...], cotangents: Arrays) -> tuple[Any, ...]:
    hidden_gradient, product, bias_gradient, chosen, targets_R, table = residuals
    # The second output is a count without a gradient. The scale stays in float32: rounding it to bfloat16 would put every
    # element off by the same error of up to 0.4%.
    scale = cotangents[0]
    # Scaled and transposed in one pass over the table. Behind the barrier, because XLA would fold the transposition back
    # into the product.
    table_gradient = scale * (product if platform() == "tpu" else jax.lax.optimization_barrier(product).T[: len(table)])
    for chosen_RD in chosen:
        table_gradient = table_gradient.at[targets_R].add(-scale * chosen_RD)
    bias_gradient = None if bias_gradient is None else scale * bias_gradient
    hidden_gradient = (scale * hidden_gradient).astype(hidden_gradient.dtype)
    return hidden_gradient, table_gradient.astype(table.dtype), bias_gradient, None, None


_token_loss.defvjp(_forward, _backward)


def _table_product(exp_RV: jax.Array, scaled_RD: jax.Array) -> jax.Array:
    """Contract the rows, to [V, D] on TPUs and to [D, V], which is transposed once at the end, elsewhere.

    The latter from a transposed copy of the small factor: on a CPU the product for [V, D], and one that contracts the rows of both factors
    (XLA makes that of a bare .T, and of bfloat16 behind a barrier too), run at half the speed or less.
    """
    if platform() == "tpu":  # in rows, which look-ups add to: XLA would write columns, and copy them
        product_VD = jnp.dot(exp_RV.T, scaled_RD, preferred_element_type=jnp.float32)
        return with_layout_constraint(product_VD, Layout(major_to_minor=(0, 1)))
    small_DR = (
        transposed(scaled_RD) if multiplies_bfloat16(scaled_RD.dtype) else jax.lax.optimization_barrier(scaled_RD.T)
    )
    return jnp.dot(small_DR, exp_RV, preferred_element_type=jnp.float32)


def _factors(
    dtype: Any, table_VD: jax.Array, bias_V: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the table [V, D] in the type of the products, its columns [D, V] for the logits, and the bias.

    On CPUs in bfloat16, all slices share a copy of the columns, and V is padded by repeating the first token, whose repetitions change no
    maximum and are taken from the sums. A mask would be one more pass over the logits.
    """
    table = table_VD.astype(dtype)
    if not multiplies_bfloat16(dtype):
        return table, table.T, bias_V
    fill = -len(table) % ALIGNED_VOCAB_MULTIPLE
    table = jnp.concatenate([table, jnp.broadcast_to(table[0], (fill, table.shape[1]))])
    bias_V = None if bias_V is None else jnp.pad(bias_V, (0, fill), constant_values=bias_V[0])
    return table, transposed(table), bias_V


def _sums(
    static: tuple[int, float | None],
    hidden_RD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    table_VD: jax.Array,
    columns_DV: jax.Array,
    bias_V: jax.Array | None,
) -> tuple[Arrays, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Compute (loss, correct) of a slice, and what its gradient needs.

    That is exp(logits) [R, V] in units of a number per row, its sum over V, its value for the target, and the cap's slope [R, V] or None.
    """
    vocab_size, cap = static
    logits_RV = jnp.dot(hidden_RD, columns_DV, preferred_element_type=jnp.float32)
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    logits_RV = capped(logits_RV, cap)
    slope_RV = 1.0 - jnp.square(logits_RV / cap) if cap else None
    repeated = columns_DV.shape[1] - vocab_size
    if platform() == "gpu" and repeated:
        logits_RV = jnp.where(jnp.arange(columns_DV.shape[1]) < vocab_size, logits_RV, -jnp.inf)
    largest_R = logits_RV.max(-1)
    target_R = jnp.take_along_axis(logits_RV, targets_R[:, None], axis=1)[:, 0]
    if platform() == "tpu":
        near_R = jnp.einsum(
            "RD,RD->R", hidden_RD, jnp.take(table_VD, targets_R, axis=0), preferred_element_type=jnp.float32
        )
        near_R = near_R if bias_V is None else near_R + jnp.take(bias_V, targets_R)
        total_R = _log_sum_exp(logits_RV, capped(near_R, cap))
        shift_R, total_R = jnp.where(weights_R == 0, largest_R, total_R), jnp.ones_like(total_R)
        exp_RV = jnp.exp(logits_RV - shift_R[:, None])
    else:
        shift_R = largest_R
        exp_RV = jnp.exp(logits_RV - shift_R[:, None])
        total_R = exp_RV.sum(-1)
        if repeated and platform() == "cpu":
            total_R -= repeated * exp_RV[:, 0]
    loss = (weights_R * (shift_R + jnp.log(total_R) - target_R)).sum()
    correct = (weights_R * (target_R >= largest_R)).sum()
    return (loss, correct), exp_RV, total_R, jnp.exp(target_R - shift_R), slope_RV


def _log_sum_exp(logits_RV: jax.Array, near_R: jax.Array) -> jax.Array:
    """Compute log(sum(exp(logits))) without their maximum, so that a TPU sums while it multiplies, instead of reading the logits again.

    `near_R` is about the target's logit. Exponentials of differences from it do not all underflow, as the target's own is 1, and those
    which would overflow are summed in windows farther up. A row whose largest logit exceeds the target's by more than about 500 nats gives inf.
    """
    gap_RV = logits_RV - near_R[:, None]
    sums = []
    for number in range(WINDOWS):
        center = 2 * number * HALF_WINDOW
        is_above = gap_RV > center - HALF_WINDOW if number else True
        is_below = gap_RV <= center + HALF_WINDOW if number < WINDOWS - 1 else True
        exp_RV = jnp.where(is_above & is_below, jnp.exp(gap_RV - center), 0.0)
        sums.append(center + jnp.log(exp_RV.sum(-1)))
    return near_R + jax.nn.logsumexp(jnp.stack(sums), axis=0)


def slice_rows(platform_name: str) -> int:
    """Return how many rows of logits one device of a platform computes at a time."""
    return SLICE_ROWS if platform_name == "cpu" else ACCELERATOR_SLICES * SLICE_ROWS


def _slices(*rows: jax.Array) -> Arrays:
    """Cut [R, ...] into [slices, R / slices, ...], padding the last slice with zeros (weight 0).

    Without copies of the table a mesh of several devices gets one slice, because each slice would sum the table's gradient over devices.
    """
    count, mesh = 1, jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.manual_axes:
        count = max(1, round(len(rows[0]) / slice_rows(platform())))
    padding = -len(rows[0]) % count

    def cut(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(count, -1, *x.shape[1:])

    return tuple(map(cut, rows))


def _map_slices(work: Callable[..., Arrays], *rows: jax.Array) -> Arrays:
    """Apply `work` to slices of rows, one after another."""
    slices = _slices(*rows)
    if len(slices[0]) == 1:
        return work(*(x[0] for x in slices))
    return jax.lax.map(lambda xs: work(*xs), slices)

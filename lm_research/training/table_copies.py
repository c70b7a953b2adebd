"""A copy of each token table for each part of the batch, so that a table's gradient is summed over devices once per step.

A step reads a table where tokens are embedded and where they are predicted, in every micro-batch. The gradient with respect to one shared
array would be summed over devices each time, in full size. The gradient with respect to a copy is a device's own, so all of them are
added locally, and the sum over devices follows at the end.

Legend: G parts of the batch, V vocabulary, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.models.definition import Params
from lm_research.parallel.rules import batch_parts, constrain, constrain_param

TABLE_AXES = ("vocab", "embed")


def copy_tables(params: Params, axes: Params | None, dtype: Any) -> Params:
    """Replace each table [V, E] by copies [G, V, E], rounded to `dtype`; `axes` are the logical axes of the parameters."""

    def copy(table_VE: jax.Array, _: Any) -> jax.Array:
        table_VE = constrain(table_VE.astype(dtype), "vocab", None).astype(table_VE.dtype)  # gathered once per step
        return _place(jnp.broadcast_to(table_VE, (batch_parts(), *table_VE.shape)))

    return _of_tables(copy, params, axes)


def place_copies(gradient: Params, axes: Params | None) -> Params:
    """Constrain gradients of copies to the devices that hold them, before micro-batches are added."""
    return _of_tables(lambda x_GVE, _: _place(x_GVE), gradient, axes)


def sum_copies(gradient: Params, axes: Params | None, rules: Mapping[str, Any], dtype: Any) -> Params:
    """Sum the gradients of copies over devices, each of which receives its part of the sum under the sharding `rules`.

    They are sent in `dtype`, the type of the model's products, as the gradients of kernels are.
    """

    def total(x_GVE: jax.Array, axes: Any) -> jax.Array:
        sum_VE = jax.lax.reduce_sum(x_GVE.astype(dtype), axes=(0,))  # jnp.sum would convert to float32 before it sends
        return constrain_param(sum_VE, axes, rules).astype(x_GVE.dtype)

    return _of_tables(total, gradient, axes)


def _place(x_GVE: jax.Array) -> jax.Array:
    return constrain(x_GVE, "batch", "vocab", None)


def _of_tables(change: Callable[[jax.Array, Any], jax.Array], tree: Params, axes: Params | None) -> Params:
    """Apply `change` to the tables of a tree with these axes; None is a batch of one part, which needs no copies."""
    if axes is None:
        return tree
    return jax.tree.map(lambda x, axes: change(x, axes) if axes == TABLE_AXES else x, tree, axes)

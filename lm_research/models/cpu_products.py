"""Matrix products in the forms that XLA multiplies fastest on CPUs: of bfloat16, and with few rows.

Legend: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from lm_research.parallel.hardware import platform

FEW_ROWS = 16  # products with at most that many rows are limited by reading the matrix


def multiplies_bfloat16(dtype: Any) -> bool:
    """Whether XLA multiplies numbers of this type on a CPU as bfloat16, if `bfloat16_product` asks for it."""
    return dtype == jnp.bfloat16 and platform() == "cpu"


def transposed(x_IO: jax.Array) -> jax.Array:
    """x^T as a matrix of its own in memory, [..., O, I].

    Without the layout, XLA would read x^T from x instead, behind an optimization barrier too, and then multiply in float32 on CPUs. Without
    the barrier, it would fuse the copy with what makes x, and a fused transposition takes 8 times as long.
    """
    return with_layout_constraint(jax.lax.optimization_barrier(x_IO).mT, Layout(tuple(range(x_IO.ndim))))


def rounded_product(a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """A product of matrices whose sums are in float32 at least, rounded to `dtype`, by default that of `b`.

    XLA before jax 0.12 multiplies bfloat16 as float32 on CPUs if the product itself is bfloat16.
    """
    sums = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.matmul(a, b, preferred_element_type=sums).astype(dtype or b.dtype)


@jax.custom_vjp
def bfloat16_product(x_RI: jax.Array, matrix_IO: jax.Array) -> jax.Array:
    """A product of bfloat16 matrices, [..., R, O] in float32, whose gradients are such products too, for `multiplies_bfloat16`."""
    return rounded_product(x_RI, matrix_IO, jnp.float32)


def _gradients(kept: tuple[jax.Array, jax.Array], y_RO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_RI, matrix_IO = kept
    y_RO = y_RO.astype(x_RI.dtype)
    return rounded_product(y_RO, transposed(matrix_IO)), rounded_product(transposed(x_RI), y_RO)


bfloat16_product.defvjp(lambda x_RI, matrix_IO: (bfloat16_product(x_RI, matrix_IO), (x_RI, matrix_IO)), _gradients)


def is_few(x_RI: jax.Array) -> bool:
    """Whether `few_rows` computes a product with these rows faster."""
    return len(x_RI) <= FEW_ROWS and jax.default_backend() == "cpu"


def few_rows(matrix_OI: jax.Array, x_RI: jax.Array, dtype: Any = None) -> jax.Array:
    """Compute x matrix^T, [R, outputs], as (matrix x^T)^T, which reads the matrix once in memory order: up to 3 times as fast on a CPU."""
    return as_rows(rounded_product(matrix_OI, as_columns(x_RI), dtype), len(x_RI))


def as_columns(x_RI: jax.Array) -> jax.Array:
    """Rows as columns [inputs, R] behind a barrier, which keeps XLA from reversing products with them; in bfloat16 two at least.

    XLA converts a bfloat16 matrix to float32 before each product with one column, or with columns that are not in memory order.
    """
    if x_RI.dtype != jnp.bfloat16:
        return jax.lax.optimization_barrier(x_RI.T)
    return transposed(jnp.pad(x_RI, ((0, max(2 - len(x_RI), 0)), (0, 0))))


def as_rows(y_OR: jax.Array, count: int) -> jax.Array:
    """The first `count` columns as rows, behind a barrier."""
    return jax.lax.optimization_barrier(y_OR).T[:count]

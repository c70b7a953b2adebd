"""Copies of token tables, and the sum of their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.config import MeshConfig
from lm_research.models.embeddings import look_up_in_turn
from lm_research.parallel.mesh import make_mesh
from lm_research.training import table_copies
from lm_research.training.table_copies import TABLE_AXES, copy_tables, sum_copies

AXES = {"tokens": TABLE_AXES, "scale": (None,)}


def test_copies_have_the_values_that_products_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 + 2^-10 lies between 1 and the next bfloat16, 1 + 2^-7; gradients of the copies stay float32."""
    monkeypatch.setattr(table_copies, "batch_parts", lambda: 3)
    params = {"tokens": jnp.full((2, 4), 1 + 2.0**-10), "scale": jnp.full((4,), 1 + 2.0**-10)}
    for dtype, value in ((jnp.bfloat16, 1.0), (jnp.float32, 1 + 2.0**-10)):
        found = copy_tables(params, AXES, dtype)
        assert found["tokens"].shape == (3, 2, 4) and found["tokens"].dtype == jnp.float32
        np.testing.assert_array_equal(found["tokens"], value)
        np.testing.assert_array_equal(found["scale"], params["scale"])


def test_gradients_are_summed_in_the_type_of_the_products() -> None:
    """bfloat16 has 8 bits: 1 + 2^-10 is 1 there, and so is its sum with two of 2^-10."""
    copies_GVE = jnp.stack([jnp.full((2, 4), x) for x in (1 + 2.0**-10, 2.0**-10, 2.0**-10)])
    gradient = {"tokens": copies_GVE, "scale": jnp.ones(4)}
    for dtype, value in ((jnp.bfloat16, 1.0), (jnp.float32, 1 + 3 * 2.0**-10)):
        found = sum_copies(gradient, AXES, {}, dtype)["tokens"]
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, value)


def test_look_ups_add_to_the_gradient_of_what_reads_the_table_next() -> None:
    """By hand: each look-up of a row adds 1, and the square of the table that is read last twice its values. No gradients are added apart."""
    table_GVE, tokens_BL = jnp.arange(8.0).reshape(1, 4, 2), jnp.array([[0, 2, 2], [3, 2, 0]])

    def loss(table_GVE: jax.Array) -> jax.Array:
        first_BLE, table_GVE = look_up_in_turn(table_GVE, tokens_BL, jnp.bfloat16)
        second_BLE, table_GVE = look_up_in_turn(table_GVE, tokens_BL[:, :1], jnp.bfloat16)
        return first_BLE.sum() + second_BLE.sum() + jnp.square(table_GVE).sum()

    with jax.set_mesh(make_mesh(MeshConfig())):
        value, gradient_GVE = jax.jit(jax.value_and_grad(loss))(table_GVE)
        program = str(jax.make_jaxpr(jax.grad(loss))(table_GVE))
    rows = [2 * (0 + 1), 0, 3 * (4 + 5), 6 + 7]
    assert float(value) == sum(rows) + (0 + 1) + (6 + 7) + sum(x * x for x in range(8))
    counts = np.array([3, 0, 3, 2])
    np.testing.assert_array_equal(gradient_GVE[0], 2 * table_GVE[0] + counts[:, None])
    assert program.count("scatter-add[") == 2 and "add_any" not in program

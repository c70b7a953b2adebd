"""Copies of token tables, and the sum of their gradients."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

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

"""Parameters laid out for few rows give the same products, with few rows and with many.

Legend: B batch, L length, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny
from lm_research.models import decode_layout
from lm_research.models.cpu_products import FEW_ROWS
from lm_research.models.definition import define

GATED = dict(activation="silu", norm_kind="rms", num_kv_heads=1, tied=False)
LAYER = dict(gated=True, query_bias=False, key_bias=False, value_bias=False, mlp_bias=False)


@pytest.mark.parametrize("length", [1, 3, FEW_ROWS + 1])
@pytest.mark.parametrize("changes", [{}, GATED], ids=["plain", "gated"])
def test_layers_compute_the_same(changes: dict, length: int) -> None:
    plain = tiny.model("gpt2")
    definition = define(plain.arch.replace(**changes).with_layers(**LAYER if changes else {}), plain.head)
    params = tiny.random_params(definition)
    bound = decode_layout.bind(definition, tiny.jit(lambda params: decode_layout.unroll(definition, params))(params))
    graph, stacked = nnx.split(definition.bind(params).decoder.layers)
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 16)), jnp.float32)
    for number, apart in enumerate(bound.blocks):
        block = nnx.merge(graph, nnx.State(jax.tree.map(lambda leaf, n=number: leaf[n], stacked)))
        pairs = [(block.attention.query, apart.attention.query), (block.attention.key, apart.attention.key)]
        for layer, other in pairs:
            assert other.kernel.ndim == 2 and layer.kernel.ndim == 3
            np.testing.assert_allclose(other(x_BLD), layer(x_BLD), atol=1e-5)
        heads_BLHK = block.attention.query(x_BLD)
        expected = block.attention.output(heads_BLHK)
        np.testing.assert_allclose(apart.attention.output(heads_BLHK), expected, atol=1e-5)
        found = apart.feed_forward(x_BLD)
        np.testing.assert_allclose(found, block.feed_forward(x_BLD), atol=1e-5)
    model = definition.bind(params)
    expected = model.predict_tokens(x_BLD).logits()
    np.testing.assert_allclose(decode_layout.predict(bound, x_BLD), expected, atol=1e-4)


@pytest.mark.parametrize("length", [1, 3, FEW_ROWS + 1])
def test_bfloat16_matrices_are_copied_as_such(length: int) -> None:
    definition = tiny.model("gpt2", dtype="bfloat16")
    params = tiny.random_params(definition)
    bound = decode_layout.bind(definition, tiny.jit(lambda params: decode_layout.unroll(definition, params))(params))
    assert {bound.head.dtype, bound.blocks[0].feed_forward.up.kernel.dtype} == {jnp.dtype(jnp.bfloat16)}
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 16)), jnp.bfloat16)
    model = definition.bind(params)
    np.testing.assert_allclose(
        decode_layout.predict(bound, x_BLD), model.predict_tokens(x_BLD).logits(), atol=1e-5, rtol=1e-5
    )
    graph, stacked = nnx.split(model.decoder.layers)
    block = nnx.merge(graph, nnx.State(jax.tree.map(lambda leaf: leaf[0], stacked)))
    layers = [
        (block.feed_forward, bound.blocks[0].feed_forward),
        (block.attention.query, bound.blocks[0].attention.query),
    ]
    for layer, other in layers:
        assert other(x_BLD).dtype == jnp.bfloat16 and other(x_BLD).shape == layer(x_BLD).shape
        np.testing.assert_allclose(other(x_BLD), layer(x_BLD), atol=0.02, rtol=0.02)

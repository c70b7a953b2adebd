"""Attention against the formula in float64, and which positions may see which."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.attention.mask import attention_bias
from lm_research.models.attention.module import reference_attention, use_fused_kernel


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(K)) v one query at a time, over the keys it may see."""
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for b, position, h in np.ndindex(query.shape[:3]):
        seen = allowed[b, position]
        scores = key[b, seen, h] @ query[b, position, h] / np.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max())
        out[b, position, h] = shares / shares.sum() @ value[b, seen, h]
    return out


SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])


@pytest.mark.parametrize("causal", [False, True])
def test_bias_lets_a_position_see_its_segment_and_no_later_one_if_causal(causal: bool) -> None:
    bias = np.asarray(attention_bias(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal))
    assert bias.shape == (2, 1, 6, 6) and bias.dtype == np.float32
    for b, query, key in np.ndindex(2, 6, 6):
        seen = SEGMENTS[b, query] == SEGMENTS[b, key] and (key <= query or not causal)
        assert (bias[b, 0, query, key] == 0) == seen
        assert bias[b, 0, query, key] in (0, -1e9)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_formula(causal: bool) -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(0, 2, (2, 6, 3, 4)) for _ in range(3))
    bias = attention_bias(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal)
    got = reference_attention(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), bias)
    np.testing.assert_allclose(got, reference(query, key, value, np.asarray(bias)[:, 0] == 0), atol=2e-6)


def test_large_scores_and_rows_of_padding_stay_finite() -> None:
    x = jnp.full((1, 4, 1, 2), 200.0)
    out, gradient = jax.value_and_grad(
        lambda x: reference_attention(
            x, x, x, attention_bias(jnp.zeros((1, 4), int), jnp.zeros((1, 4), int), True)
        ).sum()
    )(x)
    assert float(out) == pytest.approx(4 * 2 * 200) and np.isfinite(gradient).all()


def test_bfloat16_scores_and_softmax_are_float32() -> None:
    # K = 4: scores 0.5 q.k of 100 and 100.125, which is 100 in bfloat16. Probabilities 1 / (1 + exp(0.125)) = 0.4688, 0.5312.
    query = jnp.array([[16.0, 1.0, 0.0, 0.0]], jnp.bfloat16)[None, :, None]
    key = jnp.array([[12.5, 0.0, 0.0, 0.0], [12.5, 0.25, 0.0, 0.0]], jnp.bfloat16)[None, :, None]
    value = jnp.array([[0.0], [1.0]], jnp.bfloat16)[None, :, None]
    out = reference_attention(query, key, value, jnp.zeros((1, 1, 1, 2)))
    assert out.dtype == jnp.bfloat16 and float(out[0, 0, 0, 0]) == pytest.approx(0.5312, abs=2**-9)


def test_dropout_falls_on_probabilities_and_keeps_their_mean() -> None:
    length = 512
    query = key = jnp.zeros((1, length, 1, 2))
    value = jnp.ones((1, length, 1, 1))
    out = np.asarray(reference_attention(query, key, value, jnp.zeros((1, 1, length, length)), 0.1, jax.random.key(0)))
    # Each output is the mean of 512 independent keep / 0.9: 1 with standard deviation sqrt(0.1 / 0.9 / 512) = 0.0147.
    assert abs(out.mean() - 1) < 5 * 0.0147 / np.sqrt(length)
    assert 0.8 * 0.0147 < out.std() < 1.2 * 0.0147


@pytest.mark.parametrize(
    ("where", "changes", "length", "expected"),
    [
        ("gpu", {"dtype": "bfloat16"}, 128, True),
        ("gpu", {"dtype": "float32"}, 128, False),  # Triton's products would be of fewer bits
        ("gpu", {"dtype": "bfloat16"}, 64, False),
        ("gpu", {"dtype": "bfloat16", "attention_backend": "xla"}, 128, False),
        ("gpu", {"dtype": "bfloat16", "head_size": 256}, 128, False),
        ("tpu", {"dtype": "float32"}, 512, True),
        ("tpu", {"dtype": "bfloat16"}, 114, True),
        ("tpu", {"dtype": "bfloat16", "attention_backend": "xla"}, 512, False),
        ("tpu", {"dtype": "bfloat16"}, 32, False),
        ("tpu", {"dtype": "bfloat16", "attention_backend": "flash"}, 32, True),
        ("cpu", {"dtype": "bfloat16"}, 512, False),
        ("cpu", {"attention_backend": "flash"}, 16, True),
    ],
)
def test_where_kernels_are_used(where: str, changes: dict[str, Any], length: int, expected: bool) -> None:
    arch = tiny.model("gpt2", **changes).arch
    assert use_fused_kernel(arch, arch.layer_specs[0], (length, length), False, where) == expected

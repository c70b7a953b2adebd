"""Splash's kernels, interpreted, against plain attention: same values, same gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import ModelConfig
from lm_research.models.attention import module, splash
from lm_research.models.attention.mask import AttentionMask, attention_bias
from lm_research.models.attention.module import reference_attention
from lm_research.models.families import define_model


@pytest.mark.parametrize(
    ("length", "keys", "causal", "window", "cap"),
    [
        (256, 256, False, 0, 0),
        (256, 256, True, 0, 0.7),
        (256, 256, True, 50, 0),
        (256, 256, False, 51, 0),
        (128, 256, False, 0, 0),
    ],
    ids=["bidirectional", "causal, capped", "window", "window to both sides", "cross"],
)
def test_equals_plain_attention(
    length: int, keys: int, causal: bool, window: int, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splash, "LONGEST_BLOCK", 128)  # so that there are several
    rng = np.random.default_rng(0)
    query, key, value, outer = (
        jnp.asarray(rng.normal(size=(2, n, 2, 16)), jnp.float32) for n in (length, keys, keys, length)
    )
    segments = np.sort(rng.integers(1, 4, (2, keys)), axis=1)
    segments[0, -30:] = 0
    of_queries = segments if length == keys else np.sort(rng.integers(1, 4, (2, length)), axis=1)

    def results(function: object) -> list[np.ndarray]:
        def run(outer: jax.Array, *qkv: jax.Array) -> tuple[jax.Array, ...]:
            out, pull = jax.vjp(function, *qkv)
            return (out, *pull(outer))

        return [np.asarray(x) for x in tiny.jit(run)(outer, query, key, value)]

    bias = attention_bias(of_queries, segments, causal, window)
    plain = results(lambda q, k, v: reference_attention(q, k, v, bias, scale=0.3, score_cap=cap))
    mask = AttentionMask(jnp.asarray(of_queries), jnp.asarray(segments), causal, window)
    fast = results(lambda q, k, v: splash.splash_attend(q, k, v, mask, 0.3, cap))
    for got, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_model_on_a_tpu_uses_it_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The implementation of attention, by the name of the kernel in the traced program."""
    for place in (module, splash):
        monkeypatch.setattr(place, "platform", lambda: "tpu")
    section = ModelConfig(
        family="gpt2", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=512, dropout_rate=0.0
    )

    def program(attention_dropout_rate: float, key: jax.Array | None, length: int = 512) -> str:
        definition = define_model(
            dataclasses.replace(section, attention_dropout_rate=attention_dropout_rate), tiny.VOCAB
        )
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def run(params: object, tokens: jax.Array) -> jax.Array:
            return definition.bind(params).decoder(tokens, dropout_key=key)

        return str(jax.make_jaxpr(run)(definition.shapes, tokens))

    key = jax.random.key(0)
    assert "splash" in program(0.0, key) and "splash" in program(0.1, None)
    assert "splash" not in program(0.1, key) and "splash" not in program(0.0, key, length=500)

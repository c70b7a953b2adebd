"""Merged attention, in which a decoder attends to its past and to the encoder's states in one softmax (T5Gemma 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.attention.mask import attention_bias
from lm_research.models.attention.module import Attention, Memory
from lm_research.models.definition import define
from lm_research.models.forward import forward
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import invalid_reason

SIZES = dict(vocab_size=32, hidden_size=8, num_heads=4, num_kv_heads=2, head_size=2, intermediate_size=8, max_length=0)
STACK = dict(SIZES, norm="pre", norm_kind="rms", positions="rotary", num_layers=2)


def architecture(**changes: object) -> Architecture:
    encoder = from_flat(**STACK)
    return from_flat(**STACK | dict(causal=True, encoder=encoder, merged_attention=True) | changes)


def test_one_softmax_over_both_sides_equals_numpy_in_float64() -> None:
    """softmax([q k^T, q m^T] / sqrt(K)) [v, w] with keys m and values w of the encoder's states; no position is rotated here."""
    arch = architecture(positions="none")
    attention = Attention(arch, arch.layer_specs[0], nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(1, 3, 8)), rng.normal(size=(1, 5, 8))
    sources = np.array([[1, 1, 1, 1, 0]])
    own, other = (
        attention_bias(jnp.ones((1, 3)), jnp.ones((1, 3)), causal=True),
        attention_bias(jnp.ones((1, 3)), sources),
    )
    probs: list[jax.Array] = []
    as_float = [jnp.asarray(one, jnp.float32) for one in (x, memory)]
    found = attention(as_float[0], own, merged=Memory(other, as_float[1]), probs=probs)

    kernels = {
        name: np.asarray(getattr(attention, name).kernel[...], np.float64)
        for name in ("query", "key", "value", "output")
    }
    both = np.concatenate([x, memory], axis=1)[0]
    query = np.einsum("ld,dhk->hlk", x[0], kernels["query"])
    key, value = (np.einsum("sd,dgk->gsk", both, kernels[name]).repeat(2, axis=0) for name in ("key", "value"))
    visible = np.concatenate([np.tri(3), np.broadcast_to(sources, (3, 5))], axis=1)
    scores = np.where(visible, np.einsum("hlk,hsk->hls", query, key) / 2**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("hls,hsk,hkd->ld", weights, value, kernels["output"])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(probs[0][0], weights, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"remat": "full", "scan_layers": False}])
def test_packed_documents_see_only_their_own_source(changes: dict[str, object]) -> None:
    """The second document's tokens, on either side, change nothing in the first's states, and those of its source do."""
    definition = define(architecture(**changes), HeadSpec("seq2seq_lm"))
    params = tiny.random_params(definition, scale=0.5)
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])

    @tiny.jit
    def states(source: jax.Array, target: jax.Array) -> jax.Array:
        model = definition.bind(params)
        return model.decoder(target, segments, memory=model.encode(source, segments)[1])

    source, target = jnp.arange(6)[None] + 3, jnp.arange(6)[None] + 13
    first = states(source, target)[0, :3]
    np.testing.assert_array_equal(states(source.at[0, 3:].add(1), target.at[0, 3:].add(1))[0, :3], first)
    assert np.abs(states(source.at[0, 1].add(1), target)[0, :3] - first).max() > 1e-3


def test_captured_probabilities_are_divided_between_the_sides() -> None:
    definition = define(architecture(), HeadSpec("seq2seq_lm"))
    params = tiny.random_params(definition, scale=0.5)
    inputs = {"input_ids": jnp.ones((2, 5), jnp.int32), "decoder_input_ids": jnp.ones((2, 3), jnp.int32)}
    found = tiny.jit(lambda params: forward(definition.bind(params), "seq2seq_lm", inputs, capture=True))(params)
    own, other = (np.stack(found[name]) for name in ("decoder_attentions", "cross_attentions"))
    assert own.shape == (2, 2, 4, 3, 3) and other.shape == (2, 2, 4, 3, 5)
    np.testing.assert_allclose(own.sum(-1) + other.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (architecture(hidden_size=12), "requires an encoder whose states have the width of the decoder"),
        (from_flat(**STACK, causal=True, merged_attention=True), "requires an encoder"),
        (architecture(vocab_size=40), "vocab_size=40, and 32 in the encoder, are incompatible"),
        (architecture(window=4, window_ahead=1), "causal windows have no later positions"),
    ],
)
def test_what_cannot_be_merged_is_reported(arch: Architecture, words: str) -> None:
    assert words in invalid_reason(arch)
    assert invalid_reason(architecture()) == ""

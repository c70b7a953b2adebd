"""Heads: tied tables, gathered positions, the pooler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny
from lm_research.models.activations import ACTIVATIONS
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec, Pooler, Projection


def test_projection_gives_float32_logits() -> None:
    rng = np.random.default_rng(0)
    hidden, table, bias = rng.normal(size=(2, 3, 8)), rng.normal(size=(5, 8)), rng.normal(size=5)
    single = [jnp.asarray(x, jnp.float32) for x in (hidden, table, bias)]
    np.testing.assert_allclose(Projection(*single).logits(), hidden @ table.T + bias, atol=1e-5)
    np.testing.assert_allclose(Projection(*single[:2], None).logits(), hidden @ table.T, atol=1e-5)
    low = Projection(single[0].astype(jnp.bfloat16), *single[1:]).logits()
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, hidden @ table.T + bias, atol=0.05)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_output_table_is_the_embedding_table(family: str) -> None:
    definition = tiny.model(family)
    stack = "encoder" if family == "bert" else "decoder"
    tables = [leaf for leaf in jax.tree.leaves(definition.shapes) if tiny.VOCAB in leaf.shape and len(leaf.shape) == 2]
    assert len(tables) == 1
    params = tiny.random_params(definition)
    embeddings = params[stack]["embeddings"]

    @tiny.jit
    def logits(params: Any, x_BLD: jax.Array) -> jax.Array:
        model = definition.bind(params)
        places = (jnp.zeros((1, 1), int),) if family == "bert" else ()
        return model.predict_tokens(x_BLD, *places).logits()[0, 0]

    x_BLD = np.random.default_rng(1).normal(size=(1, 1, 16)).astype(np.float32)
    moved = np.array(embeddings["tokens"])
    moved[7] *= 2
    change = logits(params | {stack: params[stack] | {"embeddings": embeddings | {"tokens": moved}}}, x_BLD)
    assert np.flatnonzero(np.abs(change - logits(params, x_BLD)) > 1e-6).tolist() == [7]


def test_masked_positions_are_gathered_before_the_head() -> None:
    definition = tiny.model("bert")
    params = tiny.random_params(definition)
    predict = tiny.jit(lambda params, x, places: definition.bind(params).predict_tokens(x, places).logits())
    x_BLD = np.random.default_rng(2).normal(size=(2, 6, 16)).astype(np.float32)
    places = np.array([[5, 0, 3], [2, 2, 1]])
    everywhere = predict(params, x_BLD, np.tile(np.arange(6), (2, 1)))
    np.testing.assert_allclose(predict(params, x_BLD, places), everywhere[np.arange(2)[:, None], places], atol=1e-5)


def test_next_sentence_reads_the_first_position_through_tanh() -> None:
    definition = tiny.model("bert")
    params = tiny.random_params(definition)
    x_BLD = np.random.default_rng(3).normal(size=(2, 6, 16)).astype(np.float32)
    got = tiny.jit(lambda params, x: definition.bind(params).predict_next_sentence(x))(params, x_BLD)
    pooler, head = params["pooler"]["dense"], params["next_sentence"]
    pooled = np.tanh(x_BLD[:, 0].astype(np.float64) @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(got, pooled @ head["kernel"] + head["bias"], atol=1e-5)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("pooling", ["first", "first_real", "last", "mean", "late_mean"])
@pytest.mark.parametrize("packed", [False, True])
def test_poolings_of_padded_and_of_packed_rows(pooling: str, packed: bool) -> None:
    """Against loops over the positions of each sequence, with the pooler's layers (dense, tanh, norm) before or after the mean."""
    arch = tiny.model("bert").arch.replace(pooling=pooling, pooler_norm=True, pad_id=0)
    definition = define(arch, HeadSpec("classification", 3))
    params = tiny.random_params(definition)
    x_BLD = np.random.default_rng(5).normal(size=(2, 5, 16)).astype(np.float32)
    segments_BL = np.array([[1, 1, 2, 2, 2], [1, 2, 2, 0, 0]] if packed else [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]])

    def layers(x: np.ndarray) -> np.ndarray:
        dense, norm = (params["pooler"][name] for name in ("dense", "norm"))
        y = np.tanh(x @ dense["kernel"] + dense["bias"])
        return (y - y.mean()) / np.sqrt(y.var() + arch.norm_epsilon) * norm["scale"] + norm["bias"]

    def summary(states_LD: np.ndarray) -> np.ndarray:
        if pooling == "late_mean":
            return np.mean([layers(x) for x in states_LD], axis=0)
        return layers(states_LD.mean(0) if pooling == "mean" else states_LD[-1 if pooling == "last" else 0])

    def logits(states_LD: np.ndarray) -> np.ndarray:
        return summary(states_LD) @ params["classifier"]["kernel"] + params["classifier"]["bias"]

    def parts(x_LD: np.ndarray, row: np.ndarray) -> list[np.ndarray]:
        if packed:
            return [x_LD[row == number] for number in (1, 2)]
        return [x_LD if pooling == "first" else x_LD[row > 0]]  # padding counts as a first position

    expected = [[logits(part) for part in parts(*pair)] for pair in zip(x_BLD, segments_BL, strict=True)]
    classify = tiny.jit(
        lambda params, x: definition.bind(params).classify(x, segments_BL, segments_BL, num_segments=2 * packed)
    )
    np.testing.assert_allclose(classify(params, x_BLD), expected if packed else np.squeeze(expected, 1), atol=1e-5)


def test_logits_are_capped_after_their_bias() -> None:
    """5 tanh((2 + 3) / 5) = 3.807971; without a bias, 5 tanh(2 / 5) = 1.899745."""
    one = jnp.ones((1, 1, 1))
    found = [Projection(2 * one, one[0], bias, 5.0).logits() for bias in (3 * one[0, 0], None)]
    np.testing.assert_allclose(np.ravel(found), [3.807971, 1.899745], rtol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "places"),
    [("first", [0, 0, 0]), ("eos", [2, 3, 0]), ("last", [3, 4, 0]), ("end", [4, 4, 4])],
    ids=lambda one: str(one),
)
def test_the_position_that_represents_a_row(pooling: str, places: list[int]) -> None:
    """The first; the last end token, 2, or the first position if a row has none; the last that is not padding, 0; or the last.

    In a packed row that holds of each segment.
    """
    arch = tiny.model("bert").arch.replace(pooler_activation="", eos_id=2, pad_id=0)
    tokens = jnp.array([[5, 2, 2, 7, 0], [5, 5, 5, 2, 9], [0, 0, 0, 0, 0]])
    x = jnp.arange(15.0).reshape(3, 5, 1) + jnp.zeros(16)
    pooler = Pooler(arch, nnx.Rngs(0), pooling)
    assert (pooler(x, tokens)[:, 0] - 5 * jnp.arange(3)).tolist() == places
    segments = jnp.array([[1, 1, 2, 2, 0]])
    tokens = jnp.array([[5, 2, 7, 2, 2]])
    expected = {"first": [0, 2], "eos": [1, 3], "last": [1, 3], "end": [1, 3]}[pooling]
    assert pooler(x[:1], tokens, segments, 2)[0, :, 0].tolist() == expected
    if pooling != "first":
        assert pooler(x[:1], tokens, segments)[0, 0] == 3  # without padding, whose segment is 0


def test_scales_and_activations_of_heads() -> None:
    """Logits under muP are divided by the ratio of widths. ELECTRA's generator has an activation of its own in the head."""
    x = np.random.default_rng(0).normal(size=(1, 2, 16)).astype(np.float32)
    for family in ("bert", "gpt2"):
        plain = tiny.model(family)
        params = tiny.random_params(plain)
        scaled = define(plain.arch.replace(logit_scale=0.25), plain.head)
        places = (jnp.array([[0, 1]]),) if family == "bert" else ()
        one, other = (d.bind(params).predict_tokens(x, *places) for d in (plain, scaled))
        np.testing.assert_allclose(other.hidden_BME, one.hidden_BME / 4, rtol=1e-6)
    bert = tiny.model("bert")
    params = tiny.random_params(bert)
    for name in ("", "relu", "tanh"):
        head = define(bert.arch.replace(head_activation=name, activation="gelu"), bert.head).bind(params).masked_lm
        inner = ACTIVATIONS[name or "gelu"](head.dense(x))
        np.testing.assert_allclose(head(x, jnp.ones((64, 16))).hidden_BME, head.norm(inner), rtol=1e-5)


def test_a_constant_bias_has_no_gradient() -> None:
    arch = tiny.model("gpt2").arch.replace(head_bias=True)
    definition = define(arch, HeadSpec("causal_lm"))
    params = tiny.random_params(definition)

    def loss(params: Any) -> jax.Array:
        return definition.bind(params).predict_tokens(jnp.ones((1, 1, 16))).logits()[0, 0, 3]

    gradient = jax.grad(loss)(params)
    assert not np.any(gradient["next_token"]["bias"]) and np.any(gradient["decoder"]["embeddings"]["tokens"])
    moved = {**params, "next_token": {"bias": params["next_token"]["bias"] + 1}}
    assert float(loss(moved) - loss(params)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("head", "labels", "classes"), [("classification", 5, 5), ("multiple_choice", 5, 1)])
def test_numbers_of_classes(head: str, labels: int, classes: int) -> None:
    assert HeadSpec(head, labels).num_classes == classes

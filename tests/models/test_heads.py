"""Heads: tied tables, gathered positions, the pooler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec, Projection


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

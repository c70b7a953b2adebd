"""Stacks of blocks: which positions influence which, padding and packing, and that loops and remat change nothing.

Legend: L length, S length of the keys, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny

LENGTH = 12
# Three documents and padding: segments, positions that restart, token types (for the encoder).
PACKED = {
    "segments_BL": np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]]),
    "positions_BL": np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 0]]),
    "types_BL": np.array([[0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0]]),
}
STACK = {"bert": "encoder", "gpt2": "decoder"}


class Runner:
    """Hidden states of one model, compiled once a shape, and their gradients."""

    def __init__(self, family: str, **changes: Any) -> None:
        self.family = family
        self.definition = tiny.model(family, **changes)
        self.params = tiny.random_params(self.definition)
        self._run = tiny.jit(self._states)
        self._gradients = tiny.jit(self._all_gradients)

    def _states(self, params: Any, tokens_BL: jax.Array, inputs: dict) -> jax.Array:
        return getattr(self.definition.bind(params), STACK[self.family])(tokens_BL, **inputs)

    def __call__(self, tokens_BL: np.ndarray, **inputs: Any) -> np.ndarray:
        return np.asarray(self._run(self.params, tokens_BL, self._fitting(inputs)))

    def _all_gradients(self, params: Any, tokens_BL: jax.Array, inputs: dict) -> jax.Array:
        stack = STACK[self.family]

        def states(table: jax.Array) -> jax.Array:
            embeddings = params[stack]["embeddings"] | {"tokens": table}
            return self._states(params | {stack: params[stack] | {"embeddings": embeddings}}, tokens_BL, inputs)[0]

        x_LD, pull = jax.vjp(states, params[stack]["embeddings"]["tokens"])
        probe_LLD = jnp.eye(len(x_LD))[:, :, None] * jnp.cos(jnp.arange(x_LD.shape[1]))
        return jnp.abs(jax.vmap(lambda probe: pull(probe)[0])(probe_LLD)).sum(-1)[:, tokens_BL[0]]

    def influence(self, tokens_BL: np.ndarray, **inputs: Any) -> np.ndarray:
        """[L, S]: size of the gradient of state L with respect to the embedding of the token at S (tokens differ)."""
        assert len(set(tokens_BL[0])) == tokens_BL.shape[1]
        return np.asarray(self._gradients(self.params, tokens_BL, self._fitting(inputs)))

    def _fitting(self, inputs: dict) -> dict:
        return {k: v for k, v in inputs.items() if k != "types_BL" or self.family == "bert"}


@pytest.fixture(scope="module")
def models() -> dict[str, Runner]:
    return {family: Runner(family) for family in STACK}


TOKENS = np.random.default_rng(1).permutation(np.arange(5, tiny.VOCAB))[None, :LENGTH]
FULL = {
    "segments_BL": np.ones((1, LENGTH), int),
    "positions_BL": np.arange(LENGTH)[None],
    "types_BL": np.zeros((1, LENGTH), int),
}


def test_a_decoder_sees_the_past_and_all_of_it(models: dict[str, Runner]) -> None:
    influence = models["gpt2"].influence(TOKENS, **FULL)
    past = np.tril(np.ones((LENGTH, LENGTH), bool))
    assert (influence[~past] == 0).all() and (influence[past] > 1e-6).all()


def test_an_encoder_sees_both_sides(models: dict[str, Runner]) -> None:
    assert (models["bert"].influence(TOKENS, **FULL) > 1e-6).all()


@pytest.mark.parametrize("family", STACK)
def test_packed_documents_and_padding_do_not_influence_each_other(family: str, models: dict[str, Runner]) -> None:
    influence = models[family].influence(TOKENS, **PACKED)
    segments = PACKED["segments_BL"][0]
    seen = segments[:, None] == segments[None, :]
    if family == "gpt2":
        seen &= np.tril(np.ones((LENGTH, LENGTH), bool))
    assert (influence[~seen] == 0).all() and (influence[seen] > 1e-6).all()


@pytest.mark.parametrize("family", STACK)
def test_a_packed_row_has_the_states_of_its_separate_documents(family: str, models: dict[str, Runner]) -> None:
    run, segments = models[family], PACKED["segments_BL"][0]
    packed = run(TOKENS, **PACKED)[0]
    for number in (1, 2, 3):
        places = np.flatnonzero(segments == number)
        row = {name: np.zeros((1, LENGTH), int) for name in ("tokens", *PACKED)}
        for name, values in {"tokens": TOKENS, **PACKED}.items():
            row[name][0, : len(places)] = values[0, places]
        row["segments_BL"] = np.minimum(row["segments_BL"], 1)
        alone = run(row.pop("tokens"), **row)[0]
        np.testing.assert_allclose(packed[places], alone[: len(places)], atol=2e-5)


@pytest.mark.parametrize("family", STACK)
def test_padding_changes_nothing(family: str, models: dict[str, Runner]) -> None:
    run, real = models[family], slice(0, 7)
    segments = (np.arange(LENGTH) < 7).astype(int)[None]
    inputs = FULL | {"segments_BL": segments}
    other = np.where(segments, TOKENS, TOKENS[:, ::-1])
    padded = run(TOKENS, **inputs)[0, real]
    np.testing.assert_array_equal(padded, run(other, **inputs)[0, real])
    short = run(TOKENS[:, real], **{name: value[:, real] for name, value in FULL.items()})
    np.testing.assert_allclose(padded, short[0], atol=2e-5)


def test_missing_inputs_mean_one_full_row_counted_from_zero(models: dict[str, Runner]) -> None:
    for run in models.values():
        np.testing.assert_allclose(run(TOKENS), run(TOKENS, **FULL), atol=1e-6)


def test_an_encoder_without_positions_is_permutation_equivariant(models: dict[str, Runner]) -> None:
    run, order = models["bert"], np.random.default_rng(3).permutation(LENGTH)
    inputs = FULL | {"types_BL": PACKED["types_BL"]}
    mixed = inputs | {"types_BL": inputs["types_BL"][:, order]}
    assert np.abs(run(TOKENS, **inputs)[:, order] - run(TOKENS[:, order], **mixed)).max() > 0.1
    params, embeddings = run.params, run.params["encoder"]["embeddings"]
    nowhere = embeddings | {"positions": np.zeros_like(embeddings["positions"])}
    without = Runner("bert")
    without._run = run._run
    without.params = params | {"encoder": params["encoder"] | {"embeddings": nowhere}}
    np.testing.assert_allclose(without(TOKENS, **inputs)[:, order], without(TOKENS[:, order], **mixed), atol=2e-5)


@pytest.mark.parametrize("family", STACK)
def test_bfloat16_agrees_with_float32(family: str, models: dict[str, Runner]) -> None:
    low = Runner(family, dtype="bfloat16")
    assert jax.eval_shape(low._run, low.params, TOKENS, {}).dtype == jnp.bfloat16
    exact, rounded = models[family](TOKENS, **PACKED), low(TOKENS, **PACKED).astype(np.float32)
    # Unit roundoff is 2**-8 = 0.4%; some twenty roundings follow one another through two blocks.
    error = np.sqrt(np.mean((exact - rounded) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.02


def loss_of(num_layers: int = 3, **changes: Any) -> tuple[Callable[[Any], jax.Array], Any]:
    """A scalar of a decoder of narrow blocks with dropout, and parameters for it."""
    definition = tiny.model("gpt2", num_layers=num_layers, dropout_rate=0.2, attention_dropout_rate=0.2, **changes)

    def loss(params: Any) -> jax.Array:
        x_BLD = definition.bind(params).decoder(TOKENS, dropout_key=jax.random.key(0))
        return (x_BLD * jnp.cos(jnp.arange(x_BLD.size).reshape(x_BLD.shape))).sum()

    return loss, tiny.random_params(definition)


@pytest.fixture(scope="module")
def plain_gradient() -> tuple[jax.Array, Any]:
    loss, params = loss_of()
    return tiny.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("changes", [dict(scan_layers=False), dict(remat="dots"), dict(remat="full")])
def test_loops_and_remat_change_no_value_and_no_gradient(changes: dict, plain_gradient: tuple) -> None:
    loss, params = loss_of(**changes)
    value, gradient = tiny.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, plain_gradient[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), gradient, plain_gradient[1])


def test_remat_recomputes_what_its_policy_names() -> None:
    def products(remat: str) -> int:
        loss, params = loss_of(remat=remat)
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    # A block has 6 products with weights and 2 of attention. "dots" keeps the results of the former and recomputes
    # attention's. "full" keeps none, but recomputes only what a gradient needs: not the last product of the block.
    none, dots, full = map(products, ("none", "dots", "full"))
    assert (dots - none, full - none) == (2, 7)


def test_scan_layers_decides_between_a_loop_and_copies() -> None:
    def loops(scan: bool) -> int:
        loss, params = loss_of(scan_layers=scan)
        return tiny.jit(loss).lower(params).as_text().count("stablehlo.while")

    assert loops(True) == loops(False) + 1  # the others belong to jax.random


def test_a_single_layer_runs_in_the_loop_it_was_trained_in() -> None:
    # Inlined, XLA fuses the layer with its surroundings, and bfloat16 with dropout differs in the last bits from the
    # same step in a loop: a run stored at half its steps would not continue bit for bit.
    loss, params = loss_of(num_layers=1)
    assert str(jax.make_jaxpr(loss)(params)).count("scan[") == 1

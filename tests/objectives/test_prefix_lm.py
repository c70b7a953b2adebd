"""Prefixes: where they are, and which positions see which, by gradients.

Legend: B rows, L length.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.store import TokenStore
from lm_research.objectives import OBJECTIVES, define

L = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return tiny.store(tmp_path_factory.mktemp("store"), tiny.documents(seed=0, count=200, sentences=(1, 30)))


def test_rows_are_those_of_causal_lm_with_weights_after_the_prefix(store: TokenStore) -> None:
    batch = few.epoch(few.examples(few.setting("prefix_lm"), store, few.Words()))
    causal = few.epoch(few.examples(few.setting("causal_lm"), store, few.Words()))
    for name in ("tokens_BL", "targets_BL", "positions_BL", "segments_BL"):
        np.testing.assert_array_equal(batch[name], causal[name])
    assert batch["prefix_BL"].dtype == np.int32 and set(np.unique(batch["prefix_BL"])) == {0, 1}
    shares = []
    for b in range(len(batch["tokens_BL"])):
        for number in range(1, batch["segments_BL"][b].max() + 1):
            inside = batch["segments_BL"][b] == number
            prefix, weights = batch["prefix_BL"][b][inside], batch["weights_BL"][b][inside]
            length = int(prefix.sum())
            assert 1 <= length <= max(1, len(prefix) - 1) and prefix[:length].all()
            assert weights.tolist() == [0] * (length - 1) + [1] * (len(prefix) - length + 1)
            if len(prefix) == L:
                shares.append(length)
    # Uniform from 1 to 15.
    assert set(shares) == set(range(1, 16))
    assert abs(np.mean(shares) - 8) < 5 * math.sqrt((15**2 - 1) / 12 / len(shares))


def test_validation_reads_the_text_once_and_empty_rows_have_weight_zero(store: TokenStore) -> None:
    rows = few.examples(few.setting("prefix_lm"), store, few.Words(), "validation")
    batch = rows.batch(np.zeros(2, int), np.array([-1, rows.num_examples - 1]))
    assert not batch["weights_BL"][0].any() and not batch["prefix_BL"][0].any()
    assert not batch["prefix_BL"][1][batch["segments_BL"][1] == 0].any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prefix_sees_all_of_itself_and_what_follows_sees_only_the_past(family: str) -> None:
    definition = define(few.setting("prefix_lm", family), few.VOCAB)
    params = tiny.random_params(definition)
    tokens_BL = np.random.default_rng(0).integers(5, few.VOCAB, (1, L), np.int32)
    # Two documents: tokens 0..8 with a prefix of 4, and 9..15 with a prefix of 3.
    segments_BL = np.array([[1] * 9 + [2] * 7], np.int32)
    positions_BL = np.array([[*range(9), *range(7)]], np.int32)
    prefix_BL = np.array([[1] * 4 + [0] * 5 + [1] * 3 + [0] * 4], np.int32)

    def sums(params: Any, at: jax.Array) -> jax.Array:
        """How the state of each position depends on the token at one: by moving that token's embedding."""
        model = definition.bind(params)
        changed = jnp.where(jnp.arange(L) == at, (tokens_BL + 7 - 5) % (few.VOCAB - 5) + 5, tokens_BL)
        states = [
            model.decoder(t, segments_BL, positions_BL, dropout_key=None, prefix_BL=prefix_BL)
            for t in (tokens_BL, changed)
        ]
        return jnp.abs(states[0] - states[1]).max(-1)[0]

    depends_LL = np.array(tiny.jit(lambda params: jax.lax.map(lambda at: sums(params, at), jnp.arange(L)))(params)).T
    place = np.arange(L)
    same = segments_BL[0][:, None] == segments_BL[0]
    past = place[None] <= place[:, None]
    both = (prefix_BL[0][:, None] * prefix_BL[0][None]) > 0
    expected = same & (past | both)
    assert (depends_LL[~expected] == 0).all()
    assert (depends_LL[expected] > 0).all()


def test_nothing_that_is_predicted_can_be_seen(store: TokenStore) -> None:
    """The loss of a position does not change with the token that it predicts, or with any after it."""
    config = few.setting("prefix_lm")
    definition = define(config, few.VOCAB)
    objective = OBJECTIVES["prefix_lm"](config, few.Words())
    batch = objective.examples(store, "train").batch(np.zeros(4, int), np.arange(4))
    params = tiny.random_params(definition)

    @tiny.jit
    def loss(params: Any, batch: dict) -> jax.Array:
        return objective.metric_sums(definition.bind(params), batch, None)["lm_loss_nats"]

    for b in range(4):
        at = int(np.flatnonzero(batch["weights_BL"][b])[0])
        only = {**batch, "weights_BL": np.zeros_like(batch["weights_BL"])}
        only["weights_BL"][b, at] = 1.0
        changed = {**only, "tokens_BL": only["tokens_BL"].copy()}
        changed["tokens_BL"][b, at + 1 :] = (changed["tokens_BL"][b, at + 1 :] + 1) % few.VOCAB
        assert float(loss(params, only)) == float(loss(params, changed))
        changed["tokens_BL"][b, at] = (changed["tokens_BL"][b, at] + 1) % few.VOCAB
        assert float(loss(params, only)) != float(loss(params, changed))

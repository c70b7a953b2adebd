"""Where a model applies dropout: every place draws its own mask, and without a key there is no dropout."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from helpers import tiny

TOKENS = np.zeros((8, 16), np.int32)


def constant_params(definition: Any) -> Any:
    """Embeddings are 100 everywhere, every attention branch 1 and every feed-forward branch 10, whatever comes in."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), definition.shapes)
    decoder = params["decoder"]
    decoder["embeddings"]["tokens"][:] = 100.0
    decoder["layers"]["attention"]["output"]["bias"][:] = 1.0
    decoder["layers"]["feed_forward"]["down"]["bias"][:] = 10.0
    decoder["final_norm"]["scale"][:] = 1.0
    return params


def test_every_branch_of_every_layer_draws_its_own_mask() -> None:
    definition = tiny.model("gpt2", hidden_size=128, dropout_rate=0.5)
    run = tiny.jit(lambda params, key: definition.bind(params).decoder(TOKENS, dropout_key=key))
    x_BLD = np.asarray(run(constant_params(definition), jax.random.key(0)))
    # Before the last norm an element is 2 (100 e + a1 + a2 + 10 (f1 + f2)), each letter 0 or 1: 2 x 3 x 3 = 18 values
    # if all five masks are independent, and fewer if any two are equal. Of 128 elements a row's rarest value (1 in 32)
    # is missing with probability 2%, so one of 128 rows has them all.
    values = [len(np.unique(np.round(row, 4))) for row in x_BLD.reshape(-1, 128)]
    assert max(values) == 18
    # And no row, and no position in it, repeats another's mask.
    assert len(np.unique(np.sign(x_BLD).reshape(-1, 128), axis=0)) == x_BLD.shape[0] * x_BLD.shape[1]


def test_a_key_decides_and_no_key_means_no_dropout() -> None:
    with_dropout = tiny.model("gpt2", dropout_rate=0.3, attention_dropout_rate=0.3)
    only_attention = tiny.model("gpt2", dropout_rate=0.0, attention_dropout_rate=0.3)
    params = tiny.random_params(with_dropout)
    tokens = np.random.default_rng(0).integers(5, tiny.VOCAB, (2, 16))

    def run(definition: Any, key: jax.Array | None) -> np.ndarray:
        return np.asarray(tiny.jit(lambda params: definition.bind(params).decoder(tokens, dropout_key=key))(params))

    plain = run(tiny.model("gpt2"), None)
    np.testing.assert_array_equal(run(with_dropout, None), plain)
    one, other = (run(only_attention, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - plain).max() > 0.01 and np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(one, run(only_attention, jax.random.key(0)))

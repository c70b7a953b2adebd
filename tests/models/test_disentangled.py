"""Attention to contents and to distances (He et al. 2020), and convolutions next to a layer, by loops and step by step.

Legend: B batch, L length, D model width, H heads, K head width, R rows of the table of distances.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.models import decode
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.definition import define
from lm_research.models.flops import train_flops
from lm_research.models.heads import HeadSpec
from lm_research.models.positions import embedded_distances, shifted_rows

LENGTH = 9
TERMS = {"positions": "disentangled", "position_terms": ("query", "key")}
SIZES = dict(vocab_size=tiny.VOCAB, hidden_size=16, num_heads=2, intermediate_size=32, max_length=0, num_layers=1)
TOKENS = np.random.default_rng(0).integers(5, tiny.VOCAB, (1, LENGTH))


def said(**changes: Any) -> Architecture:
    return from_flat(**SIZES | TERMS | dict(relative_buckets=6, relative_max_distance=0) | changes)


def test_rows_of_distances_by_hand() -> None:
    """12 rows, the 7th for distance 0. Up to 3 each distance has a row; d beyond has 3 + ceil(2 ln(d / 3) / ln(10 / 3)) more or less.

    2 ln(d / 3) / ln(10 / 3) is 0.48, 0.85, 1.15, 1.41, 1.63, 1.82, 2 for d from 4 to 10, and 2.16 for 11, which is cut to the last row.
    """
    later = [7, 8, 9, 10, 10, 11, 11, 11, 11, 11, 11]
    earlier = [5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 0]
    distances = np.arange(1, 12)
    np.testing.assert_array_equal(embedded_distances(distances, 12, 11), later)
    np.testing.assert_array_equal(embedded_distances(-distances, 12, 11), earlier)
    np.testing.assert_array_equal(embedded_distances(np.array([-4, -3, 0, 2, 3]), 6, 0), [0, 0, 3, 5, 5])


def test_shifted_rows_by_loops() -> None:
    values = np.random.default_rng(1).normal(size=(2, 3, 4, 7)).astype(np.float32)
    found = np.asarray(shifted_rows(jnp.asarray(values)))
    expected = [[values[:, :, row, 3 - row + place] for place in range(4)] for row in range(4)]
    np.testing.assert_array_equal(found, np.moveaxis(np.array(expected), (0, 1), (2, 3)))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("terms", [("query", "key"), ("query",), ("key",)])
def test_scores_by_loops(own: bool, terms: tuple[str, ...]) -> None:
    """Probabilities are the softmax of (q k + q p_k + k p_q) / sqrt(T K), with the distance's key p_k and query p_q (equation 4)."""
    definition = define(said(position_terms=terms, position_projections=own), HeadSpec("none", pooled=False))
    params, captured = tiny.random_params(definition, scale=0.5), []
    definition.bind(params).encoder(TOKENS, captured=captured)
    layer = jax.tree.map(lambda leaf: np.asarray(leaf[0]), params["encoder"]["layers"]["attention"])
    x_LD, table_RD = captured[0].hidden_states[0][0], params["encoder"]["relative_embeddings"]

    def project(name: str, x: Any) -> np.ndarray:
        return np.einsum("LD,DHK->LHK", x, layer[name]["kernel"]) + layer[name]["bias"]

    query, key = project("query", x_LD), project("key", x_LD)
    prefix = "position_" if own else ""
    position_key = project(f"{prefix}key", table_RD) if "query" in terms else np.zeros((6, 2, 8))
    position_query = project(f"{prefix}query", table_RD) if "key" in terms else np.zeros((6, 2, 8))
    for head in range(2):
        scores = np.zeros((LENGTH, LENGTH))
        for i in range(LENGTH):
            for j in range(LENGTH):
                row = min(max(i - j + 3, 0), 5)
                both = query[i, head] @ key[j, head] + query[i, head] @ position_key[row, head]
                scores[i, j] = (both + key[j, head] @ position_query[row, head]) / np.sqrt((1 + len(terms)) * 8)
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(captured[0].attentions[0][0, head], odds / odds.sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["looped", "apart"])
def test_a_causal_stack_gives_the_same_step_by_step(apart: bool) -> None:
    """A prompt of 3 tokens and 6 single ones, with a cache and a window, against the row of 9 at once."""
    pattern = (dict(position_projections=False), dict(attention="window", window=4))
    changes = dict(
        num_layers=3, causal=True, norm="pre", relative_buckets=8, relative_max_distance=7, relative_norm=True
    )
    definition = define(from_flat(pattern, **SIZES | TERMS | changes), HeadSpec("causal_lm"))

    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        bound = decode.bind(definition, decode.unroll(definition, params) if apart else params)

        def extend(cache: decode.Cache, tokens_BL: jax.Array, first: Any) -> tuple[decode.Cache, jax.Array]:
            own_L = first + jnp.arange(tokens_BL.shape[1])
            distance_BLS = (own_L[:, None] - jnp.arange(LENGTH))[None]
            slots = decode.CacheSlots(jnp.int32(first), own_L[None], distance_BLS >= 0, distance_BLS)
            x_BLD, cache = decode.extend(bound, tokens_BL, cache, slots)
            return cache, x_BLD

        cache, first_BLD = extend(decode.empty(bound, 1, LENGTH), TOKENS[:, :3], 0)
        others = (jnp.asarray(TOKENS[0, 3:, None, None]), jnp.arange(3, LENGTH))
        _, other_LBD = jax.lax.scan(lambda cache, token: extend(cache, *token), cache, others)
        return jnp.concatenate([first_BLD, other_LBD[:, 0].swapaxes(0, 1)], axis=1), definition.bind(params).decoder(
            TOKENS
        )

    found, expected = tiny.jit(run)(tiny.random_params(definition, scale=0.5))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "groups"), [(3, 1), (5, 4)])
def test_a_convolution_by_loops(width: int, groups: int) -> None:
    """norm(y + tanh(convolution of the embeddings)), of two documents and padding; y is the state without a convolution."""
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    changes: dict[str, Any] = dict(conv_width=width, conv_groups=groups)
    definition = define(said(**changes), HeadSpec("none", pooled=False))
    params, captured = tiny.random_params(definition, scale=0.5), []
    found_LD = definition.bind(params).encoder(TOKENS, segments, captured=captured)[0]
    plain = define(said(), HeadSpec("none", pooled=False))
    layers = {name: tree for name, tree in params["encoder"]["layers"].items() if not name.startswith("convolution")}
    y_LD = plain.bind({"encoder": params["encoder"] | {"layers": layers}}).encoder(TOKENS, segments)[0]
    x_LD, size = np.asarray(captured[0].hidden_states[0][0]), 16 // groups
    filters, bias, norm = (
        jax.tree.map(lambda leaf: np.asarray(leaf[0]), params["encoder"]["layers"][part])
        for part in ("convolution", "convolution", "convolution_norm")
    )
    for place in range(7):
        mixed = bias["bias"].copy()
        for offset in range(width):
            other = place + offset - width // 2
            if 0 <= other < LENGTH and segments[0, other] == segments[0, place]:
                for out in range(16):
                    first = out // size * size
                    mixed[out] += filters["filters"][out, :, offset] @ x_LD[other, first : first + size]
        state = y_LD[place] + np.tanh(mixed)
        state = (state - state.mean()) / np.sqrt(state.var() + 1e-5) * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(found_LD[place], state, atol=1e-5)
    assert not found_LD[7:].any()


def test_flops_of_terms_and_convolutions_by_hand() -> None:
    """A term multiplies queries or keys of width 16 with one vector per key; a filter of 3 has 3 x 16 x 16 weights."""
    plain = train_flops(define(from_flat(**SIZES), HeadSpec("none", pooled=False)), LENGTH, 0)
    both = train_flops(define(said(), HeadSpec("none", pooled=False)), LENGTH, 0)
    mixed = train_flops(define(said(conv_width=3), HeadSpec("none", pooled=False)), LENGTH, 0)
    assert both.layers == plain.layers and mixed.layers == plain.layers + 6 * LENGTH * 3 * 16 * 16
    assert both.attention == mixed.attention == plain.attention + 2 * 6 * 16 * LENGTH * LENGTH

"""Filters against loops over lists, and the distribution of draws against the filtered one (Pearson's chi-square).

Legend: R rows, C candidates.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.decoding import sampling

NEVER = -np.inf


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max())
    return exp / exp.sum()


def by_share(scores: np.ndarray) -> list[int]:
    return sorted(range(len(scores)), key=lambda token: -scores[token])


def kept_by(name: str, scores: np.ndarray, value: float, keep: int) -> set[int]:
    """The tokens that a filter must keep, by its definition."""
    share, order = softmax(scores.astype(np.float64)), by_share(scores)
    if name == "top_k":
        return set(order[: max(int(value), keep)])
    if name == "top_p":
        count = next(n for n in range(1, len(order) + 1) if share[order[:n]].sum() >= value or n == len(order))
        return set(order[: max(count, keep)])
    if name == "min_p":
        return {token for token in order if share[token] >= value * share.max()} | set(order[:keep])
    if name == "epsilon_cutoff":
        return {token for token in order if share[token] >= value} | set(order[:keep])
    entropy = -(share * np.log(share)).sum()
    typical = sorted(order, key=lambda token: abs(-math.log(share[token]) - entropy))
    count = next(n for n in range(1, len(order) + 1) if share[typical[:n]].sum() >= value or n == len(order))
    return set(typical[: max(count, keep)])


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("top_k", (1, 4, 50)),
        ("top_p", (0.1, 0.5, 0.93)),
        ("min_p", (0.05, 0.3, 1.0)),
        ("typical_p", (0.2, 0.6, 0.95)),
        ("epsilon_cutoff", (0.02, 0.2)),
    ],
)
def test_filters_match_their_definitions(name: str, values: tuple[float, ...], keep: int) -> None:
    rng = np.random.default_rng(0)
    scores_RC = (2 * rng.normal(size=(40, 13))).astype(np.float32)
    function = tiny.jit(lambda scores_RC, value: sampling.FILTERS[name](scores_RC, value, keep))
    for value in values:
        found_RC = np.asarray(function(scores_RC, np.int32(value) if name == "top_k" else np.float32(value)))
        for found, scores in zip(found_RC, scores_RC, strict=True):
            kept = kept_by(name, scores, value, keep)
            assert set(np.flatnonzero(np.isfinite(found))) == kept
            assert all(found[token] == scores[token] for token in kept)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("top_k", 2, 4),  # and tokens that score as high as the second
        ("top_p", 0.5, 2),
        ("min_p", 1.0, 4),
        ("epsilon_cutoff", 0.25, 4),
        ("typical_p", 1.0, 4),
        ("typical_p", 1.01, 5),  # never reached, so nothing is removed
    ],
)
def test_tokens_exactly_at_a_limit_are_kept(name: str, value: float, kept: int) -> None:
    """Four tokens share all probability, 1/4 each; the fifth has exp(-200), which is 0 in float32."""
    scores_RC = jnp.array([[0.0, 0.0, 0.0, 0.0, -200.0]])
    found = sampling.FILTERS[name](scores_RC, np.int32(value) if name == "top_k" else np.float32(value))
    assert np.isfinite(found).tolist() == [[place < kept for place in range(5)]]


def test_filters_are_applied_in_order() -> None:
    """Temperature first: at 0.5, probabilities 8 : 4 : 2 : 1 become 64 : 16 : 4 : 1, of which the first has 0.75."""
    scores_RC = jnp.log(jnp.array([[1.0, 8.0, 2.0, 4.0]]))
    kept = sampling.apply(scores_RC, {"top_p": np.float32(0.76), "temperature": np.float32(0.5)})
    assert np.isfinite(kept).tolist() == [[False, True, False, True]]
    alone = sampling.apply(scores_RC, {"top_p": np.float32(0.75), "temperature": np.float32(0.5)})
    assert np.isfinite(alone).tolist() == [[False, True, False, False]]


# The critical values of chi-square for a chance of one in a million, by degrees of freedom.
CRITICAL = {
    1: 23.9,
    2: 27.6,
    3: 30.7,
    4: 33.4,
    5: 35.9,
    6: 38.3,
    7: 40.5,
    8: 42.7,
    9: 44.8,
    10: 46.9,
    11: 48.9,
    15: 56.5,
}


def chi_square(counts: np.ndarray, shares: np.ndarray) -> tuple[float, int]:
    """The statistic of counts against probabilities, and its degrees of freedom; tokens of probability 0 must not occur."""
    assert counts[shares == 0].sum() == 0
    counts, expected = counts[shares > 0], shares[shares > 0] * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


FILTERED = [
    {},
    {"temperature": np.float32(0.6)},
    {"temperature": np.float32(1.7), "top_k": np.int32(5)},
    {"top_k": np.int32(3)},
    {"top_p": np.float32(0.8)},
    {"min_p": np.float32(0.25)},
    {"typical_p": np.float32(0.6)},
    {"epsilon_cutoff": np.float32(0.08)},
    {"top_k": np.int32(9), "top_p": np.float32(0.9), "min_p": np.float32(0.05)},
]


DRAWN = [(settings, 0) for settings in FILTERED]
DRAWN += [(settings, int(settings["top_k"])) for settings in FILTERED if "top_k" in settings]


@pytest.mark.parametrize(
    ("settings", "candidates"), DRAWN, ids=lambda x: "+".join(x) if isinstance(x, dict) else str(x)
)
def test_draws_follow_the_filtered_distribution(settings: dict, candidates: int) -> None:
    rows = 20_000
    scores = np.random.default_rng(1).normal(size=12).astype(np.float32)
    scores_RC = jnp.broadcast_to(jnp.asarray(scores), (rows, 12))
    keys_R = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(5), row))(jnp.arange(rows))
    draws = tiny.jit(lambda s, k: sampling.draw(s, settings, k, candidates))(scores_RC, keys_R)
    kept = {name: value for name, value in settings.items() if name != "temperature"}
    shaped = scores / settings.get("temperature", 1.0)
    for name, value in kept.items():  # each on the remaining candidates of those before
        left = np.flatnonzero(np.isfinite(shaped))
        chosen = left[sorted(kept_by(name, shaped[left], float(value), 1))]
        shaped = np.where(np.isin(np.arange(12), chosen), shaped, NEVER)
    statistic, freedom = chi_square(np.bincount(np.asarray(draws), minlength=12), softmax(shaped))
    assert statistic < CRITICAL[freedom], (statistic, freedom)


def test_the_best_is_the_first_of_equals() -> None:
    scores_RC = jnp.array([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, 0.0, -1.0]])
    assert sampling.best(scores_RC).tolist() == [1, 0, 2]
    block = sampling.BLOCK
    for size in (block, 2 * block, 2 * block + 3):
        scores_RC = np.zeros((5, size), np.float32)
        for row, places in enumerate([(3, size - 1), (block - 1, size - 1), (size - 1,), (size - block, size - 2)]):
            scores_RC[row, list(places)] = 1
        expected = [3, block - 1, size - 1, size - block, 0]
        assert sampling.best(jnp.asarray(scores_RC)).tolist() == expected == scores_RC.argmax(1).tolist()
    assert 0 <= int(sampling.best(jnp.full((1, block + 1), jnp.nan))[0]) <= block


def test_more_candidates_than_top_k_draw_the_same() -> None:
    """A program for up to 8 candidates draws as one for just 5 does: the first 5 in order, with the same noise."""
    scores_RV = jax.random.normal(jax.random.key(0), (64, 32))
    keys_R = jax.random.split(jax.random.key(1), 64)
    settings = {"top_k": jnp.int32(5), "top_p": jnp.float32(0.9)}
    exact, wider = (sampling.draw(scores_RV, settings, keys_R, candidates) for candidates in (5, 8))
    assert exact.tolist() == wider.tolist() and len(set(exact.tolist())) > 8

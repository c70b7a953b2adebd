"""Choice of the next token: the best one, or one drawn from a distribution without its unlikely part.

Each filter is a pure function (scores, setting, keep) -> scores that sets removed candidates to -inf and always keeps the
`keep` best. The candidates C are the vocabulary or its most likely tokens.

A draw depends on the seed, on the row's identity (its prompt, and the number of equal prompts before it) and on the number of
the new token, so other rows of the batch do not change it.

Legend: R rows, C candidates, V vocabulary, N blocks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.parallel.hardware import platform

NEVER = -jnp.inf
BLOCK = 512  # tokens that `best` searches at once


def temperature(scores_RC: jax.Array, value: Any, keep: int = 1) -> jax.Array:
    """Divide scores by the temperature."""
    return scores_RC / value


def top_k(scores_RC: jax.Array, count: Any, keep: int = 1) -> jax.Array:
    """Keep the `count` best (Fan et al. 2018), and ties with the last of them."""
    count = jnp.clip(jnp.maximum(count, keep), 1, scores_RC.shape[1])
    last_R1 = jax.lax.dynamic_index_in_dim(_descending(scores_RC), count - 1, axis=1)
    return jnp.where(scores_RC < last_R1, NEVER, scores_RC)


def top_p(scores_RC: jax.Array, mass: Any, keep: int = 1) -> jax.Array:
    """Keep the smallest set of most likely tokens with at least this probability mass (Holtzman et al. 2019)."""
    order_RC = jnp.argsort(-scores_RC, axis=1)
    sorted_RC = jnp.take_along_axis(jax.nn.softmax(scores_RC, axis=1), order_RC, axis=1)
    better_RC = jnp.cumsum(sorted_RC, axis=1) - sorted_RC
    kept_RC = (better_RC < mass) | (jnp.arange(scores_RC.shape[1]) < keep)
    return jnp.where(_unsort(kept_RC, order_RC), scores_RC, NEVER)


def min_p(scores_RC: jax.Array, fraction: Any, keep: int = 1) -> jax.Array:
    """Keep tokens with at least this fraction of the most likely one's probability (Nguyen et al. 2024)."""
    probs_RC = jax.nn.softmax(scores_RC, axis=1)
    kept_RC = probs_RC >= fraction * probs_RC.max(1, keepdims=True)
    return jnp.where(kept_RC | _best(scores_RC, keep), scores_RC, NEVER)


def typical_p(scores_RC: jax.Array, mass: Any, keep: int = 1) -> jax.Array:
    """Keep the tokens whose surprisal is nearest to the entropy, as many as reach this mass (Meister et al. 2022)."""
    log_RC = jax.nn.log_softmax(scores_RC, axis=1)
    probs_RC = jnp.exp(log_RC)
    entropy_R1 = -jnp.where(probs_RC > 0, log_RC * probs_RC, 0.0).sum(1, keepdims=True)
    deviation_RC = jnp.abs(-log_RC - entropy_R1)
    order_RC = jnp.argsort(deviation_RC, axis=1)
    sorted_RC = jnp.take_along_axis(probs_RC, order_RC, axis=1)
    last_R1 = (jnp.cumsum(sorted_RC, axis=1) < mass).sum(1, keepdims=True).clip(max=scores_RC.shape[1] - 1)
    sorted_deviation_RC = jnp.take_along_axis(deviation_RC, order_RC, axis=1)
    kept_RC = sorted_deviation_RC <= jnp.take_along_axis(sorted_deviation_RC, last_R1, axis=1)
    kept_RC |= jnp.arange(scores_RC.shape[1]) < keep
    return jnp.where(_unsort(kept_RC, order_RC), scores_RC, NEVER)


def epsilon_cutoff(scores_RC: jax.Array, threshold: Any, keep: int = 1) -> jax.Array:
    """Keep tokens with at least this probability (Hewitt et al. 2022)."""
    kept_RC = jax.nn.softmax(scores_RC, axis=1) >= threshold
    return jnp.where(kept_RC | _best(scores_RC, keep), scores_RC, NEVER)


Filter = Callable[..., jax.Array]
# In the order in which they are applied.
FILTERS: dict[str, Filter] = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
}


def apply(scores_RC: jax.Array, settings: Mapping[str, Any], keep: int = 1) -> jax.Array:
    """Apply all filters that have a setting."""
    for name, function in FILTERS.items():
        if name in settings:
            scores_RC = function(scores_RC, settings[name], keep)
    return scores_RC


def best(scores_RV: jax.Array) -> jax.Array:
    """Choose the highest-scoring token [R], the first of equals.

    On a CPU, one vectorized pass for the highest score of each block of tokens, and a search of one block, are several times as fast as
    argmax.
    """
    if platform() != "cpu":
        return jnp.argmax(scores_RV, axis=1).astype(jnp.int32)
    size = min(BLOCK, scores_RV.shape[1])
    rest = scores_RV.shape[1] % size
    highest_RN = scores_RV[:, : scores_RV.shape[1] - rest].reshape(len(scores_RV), -1, size).max(2)
    if rest:
        highest_RN = jnp.concatenate([highest_RN, scores_RV[:, -rest:].max(1, keepdims=True)], axis=1)
    start_R = jnp.minimum(
        _first_highest(highest_RN) * size, scores_RV.shape[1] - size
    )  # the last block overlaps the one before
    block_RV = jax.vmap(lambda scores_V, start: jax.lax.dynamic_slice_in_dim(scores_V, start, size))(scores_RV, start_R)
    return start_R + _first_highest(block_RV)


def _first_highest(scores_RV: jax.Array) -> jax.Array:
    """The first place [R] of the highest score."""
    places_V = jnp.arange(scores_RV.shape[1], dtype=jnp.int32)
    first_R = jnp.where(scores_RV == scores_RV.max(1, keepdims=True), places_V, scores_RV.shape[1]).min(1)
    return jnp.minimum(first_R, scores_RV.shape[1] - 1)  # NaN equals nothing


def draw(scores_RV: jax.Array, settings: Mapping[str, Any], keys_R: jax.Array, candidates: int = 0) -> jax.Array:
    """Draw a token [R] for each row from softmax of the filtered scores.

    Args:
      scores_RV: scores, -inf for banned tokens.
      settings: settings of the filters.
      keys_R: a jax.random key for each row.
      candidates: static number of most likely tokens to consider, at least top_k, which avoids sorting the vocabulary; 0
        considers all.
    """
    if not candidates:
        return _categorical(keys_R, apply(scores_RV, settings))
    scores_RC, tokens_RC = jax.lax.top_k(scores_RV, candidates)
    scores_RC = jnp.where(jnp.arange(candidates) < settings["top_k"], scores_RC, NEVER)  # scores are sorted
    settings = {name: value for name, value in settings.items() if name != "top_k"}
    choice_R = _categorical(keys_R, apply(scores_RC, settings))
    return jnp.take_along_axis(tokens_RC, choice_R[:, None], axis=1)[:, 0]


def _categorical(keys_R: jax.Array, scores_RC: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys_R, scores_RC).astype(jnp.int32)


def _descending(scores_RC: jax.Array) -> jax.Array:
    return -jnp.sort(-scores_RC, axis=1)


def _best(scores_RC: jax.Array, count: int) -> jax.Array:
    """Whether a candidate is among the `count` best of its row."""
    order_RC = jnp.argsort(-scores_RC, axis=1)
    return _unsort(jnp.broadcast_to(jnp.arange(scores_RC.shape[1]) < count, scores_RC.shape), order_RC)


def _unsort(sorted_RC: jax.Array, order_RC: jax.Array) -> jax.Array:
    """Undo a sort: values in the order of `order_RC` return to their original columns."""
    return jnp.take_along_axis(sorted_RC, jnp.argsort(order_RC, axis=1), axis=1)

"""Beam search for texts that must contain given words (Hokamp and Liu 2017), with beams shared out by progress.

Besides the likeliest tokens, each beam is continued with the next token of every word that it lacks. Candidates are sorted into
banks by how many tokens of words they hold, and beams are taken from the banks in turn (Post and Vilar 2018), so that texts
without words can't crowd out the others. Progress is read off the tokens themselves.

Legend: B prompts, K beams, C candidates, R rows, W words, T tokens of a word, V vocabulary, E ends, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding.logits_processors import NO_TOKEN, History, table_shape

NEVER = -1e9


def words_table(words: Sequence[Sequence[int]]) -> np.ndarray:
    """Words as one array [W, T], filled up with NO_TOKEN on the right, and to one of few sizes with words of no tokens."""
    table_WT = np.full(table_shape(words, 4), NO_TOKEN, np.int32)
    for row, word in zip(table_WT, words, strict=False):
        row[: len(word)] = word
    return table_WT


def progress(history: History, words_WT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which words the new tokens contain, and how many first tokens of each the text ends with; both [R, W]."""
    longest, length_W = words_WT.shape[1], (words_WT != NO_TOKEN).sum(1)
    fresh_RS = history.slots(history.length_R - history.new_R)
    said_RS = jnp.where(fresh_RS, history.tokens_RS, NO_TOKEN - 1)
    slots, place_T = said_RS.shape[1], jnp.arange(longest)

    def fit(place: jax.Array, fits_RWS: jax.Array) -> jax.Array:  # a word that starts at slot s
        later_RS = jnp.where(jnp.arange(slots) < slots - place, jnp.roll(said_RS, -place, axis=1), NO_TOKEN - 1)
        wanted_W1 = words_WT[:, place, None]
        return fits_RWS & ((wanted_W1 == NO_TOKEN) | (later_RS[:, None] == wanted_W1))

    def begin(count: jax.Array, partial_RW: jax.Array) -> jax.Array:  # a text that ends with so many first tokens
        latest_RT = jnp.roll(history.latest(longest), count - longest, axis=1)
        same_RWT = (place_T >= count) | (latest_RT[:, None] == words_WT)
        ends_RW = same_RWT.all(2) & (history.new_R >= count)[:, None] & (count < length_W)
        return jnp.where(ends_RW, count, partial_RW)

    shape = (len(said_RS), len(words_WT))
    fits_RWS = jax.lax.fori_loop(0, longest, fit, jnp.ones((*shape, slots), bool))
    return fits_RWS.any(2), jax.lax.fori_loop(1, longest, begin, jnp.zeros(shape, jnp.int32))


def candidates(likely: Any, totals_BKV: jax.Array, history: History, words_WT: jax.Array, ends_E: jax.Array) -> Any:
    """The likely candidates, and each beam's with the next token of a word that it lacks and with an end if it lacks none."""
    rows, beams, vocab = totals_BKV.shape
    done_RW, partial_RW = progress(history, words_WT)
    lacks_BKW = ~done_RW.reshape(rows, beams, -1)
    next_BKW = jnp.take_along_axis(words_WT[None], partial_RW[..., None], axis=2).reshape(lacks_BKW.shape)
    whole_BK1 = ~lacks_BKW.any(2, keepdims=True)
    end_BKE = jnp.broadcast_to(ends_E, (rows, beams, len(ends_E)))
    token_BKX = jnp.concatenate([next_BKW, end_BKE], axis=2)
    wanted_BKX = jnp.concatenate([lacks_BKW, whole_BK1 & (end_BKE >= 0)], axis=2)
    scores_BKX = jnp.take_along_axis(totals_BKV, jnp.clip(token_BKX, 0, vocab - 1), axis=2)
    parent_BKX = jnp.broadcast_to(jnp.arange(beams)[:, None], token_BKX.shape)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(rows, -1)

    token_BX, parent_BX = flat(jnp.clip(token_BKX, 0, vocab - 1)), flat(parent_BKX)
    token_BC = jnp.concatenate([likely.token_BC, token_BX], axis=1)
    parent_BC = jnp.concatenate([likely.parent_BC, parent_BX], axis=1)
    scores_BC = jnp.concatenate([likely.scores_BC, jnp.where(flat(wanted_BKX), flat(scores_BKX), NEVER)], axis=1)
    live_BC = jnp.concatenate([jnp.ones(likely.token_BC.shape, bool), flat(wanted_BKX)], axis=1)
    same_BCC = (token_BC[:, :, None] == token_BC[:, None]) & (parent_BC[:, :, None] == parent_BC[:, None])
    same_BCC &= live_BC[:, None]
    repeated_BC = (same_BCC & jnp.tril(jnp.ones(same_BCC.shape[1:], bool), -1)).any(2)
    # An end is no candidate of a text that lacks words.
    ends_BC = (token_BC[..., None] == ends_E).any(2)
    lacking_BC = jnp.take_along_axis(~whole_BK1[..., 0], parent_BC, axis=1)
    scores_BC = jnp.where(repeated_BC | (ends_BC & lacking_BC), NEVER, scores_BC)
    return type(likely)(scores_BC, parent_BC, token_BC)


def allocate(
    scores_BC: jax.Array, hits_BC: jax.Array, history: History, words_WT: jax.Array, left: jax.Array, beams: int
) -> tuple[jax.Array, jax.Array]:
    """Scores without texts that can no longer say all words, and the candidates that run on [B, K].

    Args:
      scores_BC: sums of log-probabilities.
      hits_BC: candidates that end here.
      history: of the candidates, as rows.
      left: tokens that may still come.
    """
    done_RW, partial_RW = progress(history, words_WT)
    length_W = (words_WT != NO_TOKEN).sum(1)
    held_R = (done_RW * length_W).sum(1) + (~done_RW * partial_RW).max(1)
    bank_BC = held_R.reshape(scores_BC.shape)
    scores_BC = jnp.where(length_W.sum() - bank_BC > left, NEVER, scores_BC)
    runs_BC = jnp.where(hits_BC, NEVER, scores_BC)
    better_BCC = runs_BC[:, None] > runs_BC[..., None]
    better_BCC |= (runs_BC[:, None] == runs_BC[..., None]) & jnp.tril(jnp.ones(better_BCC.shape[1:], bool), -1)
    rank_BC = (better_BCC & (bank_BC[:, None] == bank_BC[..., None])).sum(2)  # in its bank
    turn_BC = rank_BC * (length_W.sum() + 1) - bank_BC  # first of each bank, fullest bank first; then second ones
    turn_BC = jnp.where(runs_BC <= NEVER / 2, jnp.iinfo(jnp.int32).max, turn_BC)
    return scores_BC, jnp.argsort(turn_BC, axis=1, stable=True)[:, :beams]

"""Beam search for texts that must contain given words (Hokamp and Liu 2017), with beams allocated by progress.

In addition to the most likely tokens, each beam is continued with the next token of every word that it lacks. Candidates are
sorted into banks by the number of word tokens that they contain, and beams are taken from the banks in turn (Post and Vilar
2018), so that texts without words cannot crowd out the others. Progress is recomputed from the tokens in every step.

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
    """Pack words into an array [W, T], padded with NO_TOKEN on the right, and with empty words to one of few sizes."""
    table_WT = np.full(table_shape(words, 4), NO_TOKEN, np.int32)
    for row, word in zip(table_WT, words, strict=False):
        row[: len(word)] = word
    return table_WT


def progress(history: History, words_WT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find which words the new tokens contain, and how many first tokens of each word the text ends with; both [R, W].

    Example: after the new tokens 7 1 2 3, of the words [1, 2] and [3, 4] the first is contained, and the text ends with one
    token of the second: done = [True, False], partial = [0, 1].
    """
    longest, length_W = words_WT.shape[1], (words_WT != NO_TOKEN).sum(1)
    new_RS = history.slots(history.length_R - history.new_R)
    tokens_RS = jnp.where(new_RS, history.tokens_RS, NO_TOKEN - 1)
    slots, place_T = tokens_RS.shape[1], jnp.arange(longest)

    def match_token(place: jax.Array, fits_RWS: jax.Array) -> jax.Array:
        """Whether token `place` of each word matches a word that starts at slot s."""
        later_RS = jnp.where(jnp.arange(slots) < slots - place, jnp.roll(tokens_RS, -place, axis=1), NO_TOKEN - 1)
        token_W1 = words_WT[:, place, None]
        return fits_RWS & ((token_W1 == NO_TOKEN) | (later_RS[:, None] == token_W1))

    def match_start(count: jax.Array, partial_RW: jax.Array) -> jax.Array:
        """Set `count` where a text ends with the first `count` tokens of a word."""
        latest_RT = jnp.roll(history.latest(longest), count - longest, axis=1)
        same_RWT = (place_T >= count) | (latest_RT[:, None] == words_WT)
        ends_RW = same_RWT.all(2) & (history.new_R >= count)[:, None] & (count < length_W)
        return jnp.where(ends_RW, count, partial_RW)

    shape = (len(tokens_RS), len(words_WT))
    fits_RWS = jax.lax.fori_loop(0, longest, match_token, jnp.ones((*shape, slots), bool))
    return fits_RWS.any(2), jax.lax.fori_loop(1, longest, match_start, jnp.zeros(shape, jnp.int32))


def candidates(likely: Any, totals_BKV: jax.Array, history: History, words_WT: jax.Array, ends_E: jax.Array) -> Any:
    """Extend the likely candidates: each beam with the next token of each word that it lacks, or with an end if it lacks none.

    Args:
      likely: beam.Candidates, the most likely continuations.
      totals_BKV: scores of all continuations.
      history: of the beams, as rows.
      words_WT: as `words_table` makes them.
      ends_E: end tokens, which beams that lack words must not be continued with.
    """
    rows, beams, vocab = totals_BKV.shape
    done_RW, partial_RW = progress(history, words_WT)
    lacks_BKW = ~done_RW.reshape(rows, beams, -1)
    next_BKW = jnp.take_along_axis(words_WT[None], partial_RW[..., None], axis=2).reshape(lacks_BKW.shape)
    whole_BK1 = ~lacks_BKW.any(2, keepdims=True)
    end_BKE = jnp.broadcast_to(ends_E, (rows, beams, len(ends_E)))
    token_BKX = jnp.concatenate([next_BKW, end_BKE], axis=2)
    added_BKX = jnp.concatenate([lacks_BKW, whole_BK1 & (end_BKE >= 0)], axis=2)
    scores_BKX = jnp.take_along_axis(totals_BKV, jnp.clip(token_BKX, 0, vocab - 1), axis=2)
    parent_BKX = jnp.broadcast_to(jnp.arange(beams)[:, None], token_BKX.shape)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(rows, -1)

    token_BX, parent_BX = flat(jnp.clip(token_BKX, 0, vocab - 1)), flat(parent_BKX)
    token_BC = jnp.concatenate([likely.token_BC, token_BX], axis=1)
    parent_BC = jnp.concatenate([likely.parent_BC, parent_BX], axis=1)
    scores_BC = jnp.concatenate([likely.scores_BC, jnp.where(flat(added_BKX), flat(scores_BKX), NEVER)], axis=1)
    live_BC = jnp.concatenate([jnp.ones(likely.token_BC.shape, bool), flat(added_BKX)], axis=1)
    same_BCC = (token_BC[:, :, None] == token_BC[:, None]) & (parent_BC[:, :, None] == parent_BC[:, None])
    same_BCC &= live_BC[:, None]
    repeated_BC = (same_BCC & jnp.tril(jnp.ones(same_BCC.shape[1:], bool), -1)).any(2)
    # A text that lacks words must not end.
    ends_BC = (token_BC[..., None] == ends_E).any(2)
    lacking_BC = jnp.take_along_axis(~whole_BK1[..., 0], parent_BC, axis=1)
    scores_BC = jnp.where(repeated_BC | (ends_BC & lacking_BC), NEVER, scores_BC)
    return type(likely)(scores_BC, parent_BC, token_BC)


def allocate(
    scores_BC: jax.Array, hits_BC: jax.Array, history: History, words_WT: jax.Array, left: jax.Array, beams: int
) -> tuple[jax.Array, jax.Array]:
    """Exclude candidates that can no longer contain all words, and allocate the beams to the others by turns of the banks.

    Example: with 2 word tokens, running candidates in banks 2, 1, 1, 0 by decreasing score are taken in the order: best of
    bank 2, of bank 1, of bank 0, then the second of bank 1.

    Args:
      scores_BC: sums of log-probabilities.
      hits_BC: candidates that end here.
      history: of the candidates, as rows.
      words_WT: as `words_table` makes them.
      left: number of tokens that may follow.
      beams: K.

    Returns:
      scores_BC with excluded candidates at NEVER, and the indices of the candidates that continue [B, K].
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

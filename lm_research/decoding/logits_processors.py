"""Rules that modify next-token scores before a token is chosen: each a pure function (scores, history, setting) -> scores.

A setting is an array or a dict of arrays, so that another value needs no recompilation; a program contains the rules that have
a setting. `apply` runs them in the order of RULES, which is that of transformers.

Legend: R rows, S slots, V vocabulary, W word sequences, E end tokens, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.common.rounding import ceil_div, next_power_of_two

NEVER = -jnp.inf
NO_TOKEN = -1  # padding of token lists


class History(NamedTuple):
    """The tokens so far: rows of slots, padded on the left.

    Attributes:
      tokens_RS: token ids.
      start_R: first slot of each row.
      length_R: number of slots before that of the next token.
      new_R: how many of these were generated.
      source_RM: the encoder's tokens, NO_TOKEN for padding; None for decoders.
      counted_R: first slot that `repetition_penalty` counts; None for `start_R`.
    """

    tokens_RS: jax.Array
    start_R: jax.Array
    length_R: jax.Array
    new_R: jax.Array
    source_RM: jax.Array | None = None
    counted_R: jax.Array | None = None

    def slots(self, first_R: jax.Array | None = None) -> jax.Array:
        """Which slots hold tokens [R, S], from slot `first_R` on if given."""
        slot_S = jnp.arange(self.tokens_RS.shape[1])
        first_R = self.start_R if first_R is None else first_R
        return (slot_S >= first_R[:, None]) & (slot_S < self.length_R[:, None]) & (self.tokens_RS != NO_TOKEN)

    def source(self) -> jax.Array:
        """`source_RM`, or a decoder's prompts."""
        if self.source_RM is not None:
            return self.source_RM
        prompt_RS = self.slots() & ~self.slots(self.length_R - self.new_R)
        return jnp.where(prompt_RS, self.tokens_RS, NO_TOKEN)

    def back(self, distance: jax.Array | int) -> jax.Array:
        """The token `distance` slots back [R], 1 being the latest; NO_TOKEN before the start."""
        slot_R = self.length_R - distance
        token_R = jnp.take_along_axis(self.tokens_RS, jnp.maximum(slot_R, 0)[:, None], axis=1)[:, 0]
        return jnp.where(slot_R >= self.start_R, token_R, NO_TOKEN)

    def latest(self, count: int) -> jax.Array:
        """The `count` latest tokens [R, count], NO_TOKEN before the start."""
        slot_RT = self.length_R[:, None] - count + jnp.arange(count)
        tokens_RT = jnp.take_along_axis(self.tokens_RS, jnp.maximum(slot_RT, 0), axis=1)
        return jnp.where(slot_RT >= self.start_R[:, None], tokens_RT, NO_TOKEN)


class Seen(NamedTuple):
    """The prompts as rules see them: as in transformers, with the tokens that the attention mask hides.

    Attributes:
      prompt_RW: a decoder's prompts, NO_TOKEN before them.
      counted_R: the first token of each that `repetition_penalty` counts: the first one that is not hidden.
      source_RM: the encoder's tokens, NO_TOKEN after them; None for decoders.
    """

    prompt_RW: Any
    counted_R: Any
    source_RM: Any

    def history(self, tokens_RS: jax.Array, width: jax.Array | int, new_R: jax.Array) -> History:
        """The history of these prompts and of `new_R` tokens from slot `width` of tokens_RS on."""
        tokens_RX = jnp.concatenate([self.prompt_RW, jnp.roll(tokens_RS, -width, axis=1)], axis=1)
        return History(
            tokens_RX,
            (self.prompt_RW != NO_TOKEN).argmax(1),
            new_R + self.prompt_RW.shape[1],
            new_R,
            self.source_RM,
            self.counted_R,
        )


Setting = Any
Rule = Callable[[jax.Array, History, Setting], jax.Array]


def apply(scores_RV: jax.Array, history: History, settings: Mapping[str, Setting]) -> jax.Array:
    """Apply all rules that have a setting."""
    for name, rule in RULES.items():
        if name in settings:
            scores_RV = rule(scores_RV, history, settings[name])
    return scores_RV


def pack_words(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Pack token sequences into an array [W, T], padded with NO_TOKEN on the left, and with empty rows to one of few sizes."""
    table_WT = np.full(table_shape(sequences), NO_TOKEN, np.int32)
    for row, sequence in zip(table_WT, sequences, strict=False):
        row[len(row) - len(sequence) :] = sequence
    return table_WT


def table_shape(sequences: Sequence[Sequence[int]], rows: int = 16) -> tuple[int, int]:
    """Round the size of a table of words up to `rows` (columns: 4) times a power of two, so that few shapes are compiled."""

    def round_size(size: int, unit: int) -> int:
        return unit * next_power_of_two(ceil_div(size, unit))

    return round_size(len(sequences), rows), round_size(max(map(len, sequences)), 4)


# --- biases and bans of words -----------------------------------------------------------------------------------------


def sequence_bias(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """Add bias_W to the last token of each word of words_WT if the latest tokens are the other tokens of the word.

    bias_W may be shorter than words_WT, whose last rows are then padding.
    """
    words_WT, vocab = setting["words_WT"], scores_RV.shape[1]
    bias_W = jnp.pad(jnp.asarray(setting["bias_W"]), (0, len(words_WT) - len(setting["bias_W"])))
    earlier_WT = words_WT[:, :-1]
    latest_RT = history.latest(earlier_WT.shape[1])
    fits_RW = ((earlier_WT == NO_TOKEN) | (latest_RT[:, None] == earlier_WT)).all(2)
    rows, last_W = jnp.arange(len(scores_RV))[:, None], words_WT[:, -1]
    last_W = jnp.where(last_W == NO_TOKEN, vocab, last_W)  # padding rows
    return scores_RV.at[rows, last_W].add(jnp.where(fits_RW, bias_W, 0.0), mode="drop")


def bad_words(scores_RV: jax.Array, history: History, words_WT: jax.Array) -> jax.Array:
    """Ban the last token of each word after its other tokens."""
    return sequence_bias(scores_RV, history, {"words_WT": words_WT, "bias_W": jnp.full(len(words_WT), NEVER)})


def suppress_tokens(scores_RV: jax.Array, history: History, tokens_T: jax.Array) -> jax.Array:
    """Ban tokens_T."""
    return jnp.where(_mask(tokens_T, scores_RV.shape[1]), NEVER, scores_RV)


def begin_suppress_tokens(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """Ban tokens_T as new token number `at`."""
    return _when(history.new_R == setting["at"], suppress_tokens(scores_RV, history, setting["tokens_T"]), scores_RV)


def vocabulary(scores_RV: jax.Array, history: History, size: jax.Array) -> jax.Array:
    """Ban ids from `size` on, which have no token."""
    return jnp.where(jnp.arange(scores_RV.shape[1]) < size, scores_RV, NEVER)


# --- penalties for repetition -----------------------------------------------------------------------------------------


def repetition_penalty(scores_RV: jax.Array, history: History, penalty: jax.Array) -> jax.Array:
    """Divide positive scores of tokens in prompt and text by the penalty, multiply negative ones (Keskar et al. 2019)."""
    return _penalize(scores_RV, history.tokens_RS, history.slots(history.counted_R), penalty)


def encoder_repetition_penalty(scores_RV: jax.Array, history: History, penalty: jax.Array) -> jax.Array:
    """Apply the inverse penalty to tokens of the encoder's text, or of a decoder's prompt: a value above 1 favors them."""
    source_RM = history.source()
    return _penalize(scores_RV, source_RM, source_RM != NO_TOKEN, 1.0 / penalty)


def _penalize(scores_RV: jax.Array, tokens_RT: jax.Array, counts_RT: jax.Array, penalty: jax.Array) -> jax.Array:
    occurs_RV = _counts(tokens_RT, counts_RT, scores_RV.shape[1]) > 0
    return jnp.where(occurs_RV, jnp.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty), scores_RV)


def presence_penalty(scores_RV: jax.Array, history: History, penalty: jax.Array) -> jax.Array:
    """Subtract the penalty from the scores of generated tokens; the prompt does not count."""
    return scores_RV - penalty * (_generated(history, scores_RV.shape[1]) > 0)


def frequency_penalty(scores_RV: jax.Array, history: History, penalty: jax.Array) -> jax.Array:
    """Subtract the penalty once for each time that a token was generated."""
    return scores_RV - penalty * _generated(history, scores_RV.shape[1])


def _generated(history: History, vocab: int) -> jax.Array:
    """How often each token was generated [R, V]."""
    return _counts(history.tokens_RS, history.slots(history.length_R - history.new_R), vocab)


def _counts(tokens_RT: jax.Array, counts_RT: jax.Array, vocab: int) -> jax.Array:
    """How often each token occurs among those of tokens_RT where counts_RT [R, V]."""
    rows = jnp.arange(len(tokens_RT))[:, None]
    outside = jnp.where(counts_RT, tokens_RT, vocab)
    return jnp.zeros((len(tokens_RT), vocab), jnp.float32).at[rows, outside].add(1.0, mode="drop")


def no_repeat_ngram(scores_RV: jax.Array, history: History, size: jax.Array) -> jax.Array:
    """Ban tokens that would repeat a sequence of `size` tokens in prompt and text (Paulus et al. 2017)."""
    return _ban_ngrams(scores_RV, history, size, history.tokens_RS, history.slots())


def encoder_no_repeat_ngram(scores_RV: jax.Array, history: History, size: jax.Array) -> jax.Array:
    """Ban tokens that would copy a sequence of `size` tokens from the encoder's text, or from a decoder's prompt."""
    source_RM = history.source()
    return _ban_ngrams(scores_RV, history, size, source_RM, source_RM != NO_TOKEN)


def _ban_ngrams(
    scores_RV: jax.Array, history: History, size: jax.Array, hay_RT: jax.Array, counts_RT: jax.Array
) -> Any:
    """Ban each token of hay_RT whose `size - 1` predecessors there are the latest tokens of the text.

    Example, size 2: with hay 5 6 7 5 and latest token 5, token 6 is banned.
    """
    rows, vocab = jnp.arange(len(scores_RV))[:, None], scores_RV.shape[1]

    def narrow(distance: jax.Array, fits_RT: jax.Array) -> jax.Array:
        before_RT = jnp.roll(jnp.where(counts_RT, hay_RT, NO_TOKEN), distance, axis=1)
        before_RT = jnp.where(jnp.arange(hay_RT.shape[1]) < distance, NO_TOKEN, before_RT)
        token_R1 = history.back(distance)[:, None]
        return fits_RT & (before_RT == token_R1) & (token_R1 != NO_TOKEN)

    # A sequence longer than the text cannot repeat, so the loop is bounded by the text's length.
    fits_RT = jax.lax.fori_loop(1, jnp.minimum(size, history.tokens_RS.shape[1] + 1), narrow, counts_RT)
    return scores_RV.at[rows, jnp.where(fits_RT, hay_RT, vocab)].set(NEVER, mode="drop")


# --- beginning and end of texts ---------------------------------------------------------------------------------------


def min_new_tokens(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """Ban end tokens (ends_E) before `count` new tokens."""
    return _when(history.new_R < setting["count"], suppress_tokens(scores_RV, history, setting["ends_E"]), scores_RV)


def forced_token(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """Force new token number `at` to be one of tokens_T, all of which then score 0."""
    only_V = jnp.where(_mask(setting["tokens_T"], scores_RV.shape[1]), 0.0, NEVER)
    return _when(history.new_R == setting["at"], jnp.broadcast_to(only_V, scores_RV.shape), scores_RV)


def length_decay(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """After `start` new tokens, raise scores of end tokens by |score| (factor^(new tokens - start) - 1)."""
    beyond_R1 = (history.new_R - setting["start"])[:, None]
    raised = scores_RV + jnp.abs(scores_RV) * (setting["factor"] ** beyond_R1 - 1.0)
    ends = _mask(setting["ends_E"], scores_RV.shape[1]) & (beyond_R1 > 0) & jnp.isfinite(scores_RV)
    return jnp.where(ends, raised, scores_RV)


def renormalize(scores_RV: jax.Array, history: History, setting: Setting) -> jax.Array:
    """Normalize scores to log-probabilities of the tokens that other rules have left."""
    return jax.nn.log_softmax(scores_RV)


def _mask(tokens_T: jax.Array, vocab: int) -> jax.Array:
    return (jnp.arange(vocab)[:, None] == jnp.asarray(tokens_T)).any(1)


def _when(condition_R: jax.Array, changed_RV: jax.Array, scores_RV: jax.Array) -> jax.Array:
    return jnp.where(condition_R[:, None], changed_RV, scores_RV)


# In the order in which they are applied.
RULES: dict[str, Rule] = {
    "vocabulary": vocabulary,
    "sequence_bias": sequence_bias,
    "encoder_repetition_penalty": encoder_repetition_penalty,
    "repetition_penalty": repetition_penalty,
    "presence_penalty": presence_penalty,
    "frequency_penalty": frequency_penalty,
    "no_repeat_ngram": no_repeat_ngram,
    "encoder_no_repeat_ngram": encoder_no_repeat_ngram,
    "bad_words": bad_words,
    "min_new_tokens": min_new_tokens,
    "forced_bos": forced_token,
    "forced_eos": forced_token,
    "length_decay": length_decay,
    "suppress_tokens": suppress_tokens,
    "begin_suppress_tokens": begin_suppress_tokens,
    "renormalize": renormalize,
}

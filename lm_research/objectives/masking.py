"""Which tokens are hidden from an encoder, and what stands in their place.

Tokens are chosen one by one (Devlin et al. 2018), as whole words (the same authors' later models), as n-grams (Lan et al.
2019: a length n of words with probability proportional to 1 / n) or as spans (Joshi et al. 2019, SpanBERT: a length in
words from a geometric distribution that ends at `max_span_length`). Words come from the tokenizer's `starts_word`, whichever it is.

A row always predicts its share of tokens exactly, as far as whole words allow. Draws are numbered, so a row's masks are
a function of its key.

Legend: B rows, L length, M predicted positions, W words of a row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from lm_research.config import ObjectiveConfig, key
from lm_research.data.stateless_rng import uniform
from lm_research.errors import ConfigError
from lm_research.objectives.ragged import lowest_k_mask, positions_of
from lm_research.tokenizers.base import Tokenizer

# Runs of more tokens without a word's beginning are text of a script without spaces: there each token is a word.
LONGEST_WORD = 10


@dataclasses.dataclass(frozen=True)
class MaskingConfig(ObjectiveConfig):
    """How rows are cut and masked."""

    mask_rate: float = key(0.15, "Fraction of tokens to predict.", low=0.001, high=0.95)
    eval_mask_rate: float | None = key(
        None,
        "Fraction of tokens to predict in evaluations, which makes runs with different mask_rate comparable; None "
        "uses mask_rate.",
        low=0.0,
        high=0.95,
    )
    keep_rate: float = key(0.1, "Fraction of predicted tokens that are left unchanged.", low=0.0, high=1.0)
    random_rate: float = key(0.1, "Fraction of predicted tokens that are replaced by random tokens.", low=0.0, high=1.0)
    masking: str = key(
        "token",
        "What to mask: tokens, whole words, n-grams (ALBERT) or spans of words (SpanBERT).",
        choices=("token", "whole_word", "ngram", "span"),
    )
    mean_span_length: float = key(3.0, "masking=span: mean span length in words.", low=1.0, high=100.0)
    max_span_length: int = key(
        10, "Maximum length in words of spans (masking=span) and n-grams (masking=ngram).", low=1, high=64
    )
    dupe_factor: int = key(
        0, "0 draws new masks and pairs in every epoch; n repeats those of the first n epochs.", low=0
    )
    short_seq_prob: float = key(
        0.1, "Fraction of examples that are shortened to a random length, as in BERT.", low=0.0, high=1.0
    )


def num_masked(length: int, rate: float) -> int:
    """M, the fixed number of masked positions a row has room for: 20 of 128 and 77 of 512 at 15%, as in the paper."""
    return max(1, math.ceil(length * rate))


def check_masking(config: MaskingConfig) -> None:
    """Raises a ConfigError if the rates or the lengths of spans are impossible."""
    if config.keep_rate + config.random_rate > 1:
        raise ConfigError(
            f"objective.keep_rate={config.keep_rate} and objective.random_rate={config.random_rate} are together more than "
            "1. They are shares of the predicted tokens; the rest becomes the mask. Lower one of them."
        )
    highest = (config.max_span_length + 1) / 2
    if config.masking == "span" and config.max_span_length > 1 and config.mean_span_length >= highest:
        raise ConfigError(
            f"objective.mean_span_length={config.mean_span_length} cannot be the mean of lengths from 1 to objective.max_span_length="
            f"{config.max_span_length} of which longer ones are rarer; it has to be under {highest:g}. Lower it or raise max_span_length "
            "(SpanBERT: 3.8 and 10)."
        )


def span_shares(config: MaskingConfig) -> np.ndarray:
    """Probability of each length 1, ..., max_span_length of spans or n-grams, in words."""
    lengths = np.arange(1, config.max_span_length + 1)
    if config.masking == "ngram":
        inverse = 1.0 / lengths
        return inverse / inverse.sum()
    low, high = 1e-9, 1.0  # of the ratio between neighbors; the mean grows with it
    for _ in range(60):
        ratio = (low + high) / 2
        shares = ratio ** (lengths - 1.0)
        shares /= shares.sum()
        low, high = (ratio, high) if (shares * lengths).sum() < config.mean_span_length else (low, ratio)
    return shares


class Words(NamedTuple):
    """Words of rows: numbers of each token's word [B, L] (-1: none); lengths in tokens [B, W]; runs they stand in [B, W].

    A run is text without a special token inside. Rows with fewer words have lengths of 0 at the end.
    """

    number_BL: np.ndarray
    length_BW: np.ndarray
    run_BW: np.ndarray


def find_words(tokens_BL: np.ndarray, maskable_BL: np.ndarray, starts_word: np.ndarray) -> Words:
    """Divides the maskable tokens of each row into words."""
    begins_BL = maskable_BL.copy()
    begins_BL[:, 1:] &= ~maskable_BL[:, :-1]
    run_BL = np.cumsum(begins_BL, axis=1)
    begins_BL |= maskable_BL & starts_word[tokens_BL]
    number_BL, length_BW = _number(begins_BL, maskable_BL)
    if length_BW.size and length_BW.max() > LONGEST_WORD:
        begins_BL |= maskable_BL & (np.take_along_axis(length_BW, np.maximum(number_BL, 0), 1) > LONGEST_WORD)
        number_BL, length_BW = _number(begins_BL, maskable_BL)
    run_BW = np.zeros_like(length_BW)
    row, column = np.nonzero(begins_BL)
    run_BW[row, number_BL[row, column]] = run_BL[row, column]
    return Words(number_BL, length_BW, run_BW)


def _number(begins_BL: np.ndarray, maskable_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count_BL = np.cumsum(begins_BL, axis=1)
    number_BL = np.where(maskable_BL, count_BL - 1, -1)
    words = int(count_BL.max(initial=0))
    flat = number_BL + (np.arange(len(number_BL)) * words)[:, None]
    counts = np.bincount(flat[maskable_BL], minlength=words * len(number_BL))
    return number_BL, counts.reshape(len(number_BL), words)


class Masking:
    """Chooses positions of rows and replaces what stands there.

    Draws of a row's stream, counted from `start`: 0 .. L order of tokens or words; then M of what becomes of each; M of the
    random tokens; L of the lengths of spans; L of what becomes of each span.
    """

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, length: int) -> None:
        self.config, self.length = config, length
        self.num_masked = num_masked(length, config.mask_rate)
        self.mask = tokenizer.mask_id
        self.ordinary_ids = np.setdiff1d(np.arange(tokenizer.size), tokenizer.special_ids).astype(np.int32)
        if config.masking != "token":
            self.starts_word = tokenizer.starts_word
        if config.masking in ("ngram", "span"):
            self.span_ends = np.cumsum(span_shares(config))[:-1]

    def __call__(
        self, tokens_BL: np.ndarray, maskable_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, start: int
    ) -> dict[str, np.ndarray]:
        """Masks rows, in place.

        Args:
          tokens_BL: the rows.
          maskable_BL: where a token may be predicted.
          lengths_B: real tokens of each row, of which mask_rate are predicted.
          keys_B: keys of their random streams; start: the first draw that is free.

        Returns:
          tokens [B, L], mask_positions and targets [B, M] int32, weights [B, M] float32. Real positions come first, in
          the order of the text; the rest points at column 0 with weight 0.
        """
        num_masked, length = self.num_masked, self.length
        wanted_B = np.clip(np.round(lengths_B * self.config.mask_rate), 1, num_masked).astype(np.int64)
        wanted_B = np.minimum(wanted_B, maskable_BL.sum(1))
        order_BL = uniform(keys_B, length, start)
        kind_BM = uniform(keys_B, num_masked, start + length)
        if self.config.masking == "token":
            chosen_BL = lowest_k_mask(np.where(maskable_BL, order_BL, 2.0), wanted_B)
            chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
        else:
            words = find_words(tokens_BL, maskable_BL, self.starts_word)
            order_BW = np.where(words.length_BW > 0, order_BL[:, : words.length_BW.shape[1]], np.inf)
            if self.config.masking == "whole_word":
                chosen_BL = choose_words(words, order_BW, wanted_B)
                chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
            else:
                draws_BW = uniform(keys_B, order_BW.shape[1], start + length + 2 * num_masked)
                span_BW = 1 + np.searchsorted(self.span_ends, draws_BW, side="right")
                chosen_BL, owner_BL = choose_spans(words, order_BW, span_BW, wanted_B)
                chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
                if self.config.masking == "span":  # all tokens of a span have the same fate
                    kind_BL = uniform(keys_B, length, start + 2 * length + 2 * num_masked)
                    kind_BM = np.take_along_axis(kind_BL, np.take_along_axis(owner_BL, chosen_BM, 1), 1)
        return self._replace(
            tokens_BL, chosen_BM, real_BM, kind_BM, uniform(keys_B, num_masked, start + length + num_masked)
        )

    def _replace(
        self,
        tokens_BL: np.ndarray,
        chosen_BM: np.ndarray,
        real_BM: np.ndarray,
        kind_BM: np.ndarray,
        pick_BM: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Corrupts the chosen positions: by default 80% [MASK], 10% a random token, 10% unchanged."""
        keep, random = self.config.keep_rate, self.config.random_rate
        targets_BM = np.where(real_BM, np.take_along_axis(tokens_BL, chosen_BM, 1), 0)
        random_BM = self.ordinary_ids[(pick_BM * len(self.ordinary_ids)).astype(np.int64)]
        kept_BM = np.where(kind_BM < 1.0 - keep, random_BM, targets_BM)
        replaced_BM = np.where(kind_BM < 1.0 - keep - random, self.mask, kept_BM)
        row_BM, column_BM = np.nonzero(real_BM)
        tokens_BL[row_BM, chosen_BM[row_BM, column_BM]] = replaced_BM[row_BM, column_BM]
        return {
            "tokens_BL": tokens_BL,
            "mask_positions_BM": chosen_BM.astype(np.int32),
            "targets_BM": targets_BM.astype(np.int32),
            "weights_BM": real_BM.astype(np.float32),
        }


def choose_words(words: Words, order_BW: np.ndarray, wanted_B: np.ndarray) -> np.ndarray:
    """Bool [B, L]: whole words in a random order, leaving out those that would exceed the wanted number of tokens.

    A row none of whose words is short enough gives the first tokens of the first word in the order.
    """
    rank_BW = np.argsort(order_BW, axis=1)
    length_BW = np.take_along_axis(words.length_BW, rank_BW, 1)
    # All words up to the first that does not fit, at once; from there on the few that still do, one by one.
    taken_BW = (np.cumsum(length_BW, axis=1) <= wanted_B[:, None]) & (length_BW > 0)
    room_B = wanted_B - (length_BW * taken_BW).sum(1)
    open_BW = ~taken_BW & (length_BW > 0)
    while True:
        fits_BW = open_BW & (length_BW <= room_B[:, None])
        rows = np.flatnonzero(fits_BW.any(1))
        if not rows.size:
            break
        first = fits_BW[rows].argmax(1)
        taken_BW[rows, first], open_BW[rows, first] = True, False
        room_B[rows] -= length_BW[rows, first]
    by_word_BW = np.zeros_like(taken_BW)
    np.put_along_axis(by_word_BW, rank_BW, taken_BW, 1)
    number_BL = np.maximum(words.number_BL, 0)
    chosen_BL = (
        np.take_along_axis(by_word_BW, number_BL, 1) & (words.number_BL >= 0) if taken_BW.size else number_BL < 0
    )
    bare = np.flatnonzero(~chosen_BL.any(1) & (wanted_B > 0))
    if bare.size:
        of_first = words.number_BL[bare] == rank_BW[bare, :1]
        chosen_BL[bare] = of_first & (np.cumsum(of_first, axis=1) <= wanted_B[bare, None])
    return chosen_BL


def choose_spans(
    words: Words, order_BW: np.ndarray, span_BW: np.ndarray, wanted_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spans of words in a random order until the wanted number of tokens is covered; the last one ends where it is.

    A word that an earlier span covers begins none, and a span ends where its run does.

    Returns:
      bool [B, L]: what is chosen; int64 [B, L]: the word that the covering span begins with.
    """
    rows, count = order_BW.shape
    longest = int(span_BW.max(initial=1))

    same_run = [words.run_BW[:, k:] == words.run_BW[:, : count - k] for k in range(min(longest, count))]

    def reach(begins_BW: np.ndarray, shift: int) -> np.ndarray:
        """Rank of the span that covers a word and begins `shift` words before it."""
        reaches_BW = begins_BW[:, : count - shift] & same_run[shift] & (span_BW[:, : count - shift] > shift)
        return np.where(reaches_BW, order_BW[:, : count - shift], np.inf)

    # Which words begin a span depends on the spans before them: after n rounds it is settled for the first n in order,
    # and as a span rarely hangs on a long chain of others, for all after a few.
    begins_BW = words.length_BW > 0
    while True:
        rank_BW = np.full((rows, count), np.inf)
        for shift in range(len(same_run)):
            np.minimum(rank_BW[:, shift:], reach(begins_BW, shift), out=rank_BW[:, shift:])
        settled_BW = (words.length_BW > 0) & (rank_BW >= order_BW)
        if (settled_BW == begins_BW).all():
            break
        begins_BW = settled_BW
    owner_BW = np.broadcast_to(np.arange(count), (rows, count)).copy()
    for shift in range(1, len(same_run)):
        covers_BW = begins_BW[:, : count - shift] & (reach(begins_BW, shift) == rank_BW[:, shift:])
        owner_BW[:, shift:][covers_BW] = np.nonzero(covers_BW)[1]
    number_BL = np.maximum(words.number_BL, 0)
    if not count:
        return words.number_BL >= 0, number_BL
    rank_BL = np.where(words.number_BL >= 0, np.take_along_axis(rank_BW, number_BL, 1), np.inf)
    order_BL = np.argsort(rank_BL, axis=1, kind="stable")  # tokens of a span in the order of the text
    chosen_BL = np.zeros(rank_BL.shape, bool)
    np.put_along_axis(chosen_BL, order_BL, np.arange(rank_BL.shape[1]) < wanted_B[:, None], 1)
    return chosen_BL, np.take_along_axis(owner_BW, number_BL, 1)

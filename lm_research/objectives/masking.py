"""Masking: which tokens are hidden from an encoder, and what replaces them.

Tokens are chosen one by one (Devlin et al. 2018), as whole words (the same authors' later models), as n-grams (Lan et al.
2019: a length n of words with probability proportional to 1 / n) or as spans (Joshi et al. 2019, SpanBERT: a length in
words from a geometric distribution that ends at `max_span_length`). Word boundaries come from the tokenizer's `starts_word`.

Every row predicts exactly its fraction of tokens, as far as whole words allow. Draws are numbered, so a row's masks are
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

# Longer runs without the start of a word come from scripts without spaces; there each token counts as a word.
LONGEST_WORD = 10


@dataclasses.dataclass(frozen=True)
class MaskingConfig(ObjectiveConfig):
    """Settings of how rows are cut and masked."""

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
    """Return M, the fixed number of masked positions per row: 20 of 128 and 77 of 512 at 15%, as in the paper."""
    return math.ceil(length * rate)


def check_masking(config: MaskingConfig) -> None:
    """Raise a ConfigError if the rates or the lengths of spans are impossible."""
    if config.keep_rate + config.random_rate > 1:
        raise ConfigError(
            f"objective.keep_rate={config.keep_rate} and objective.random_rate={config.random_rate} add up to more than "
            "1. They are fractions of the predicted tokens; the rest becomes the mask token. Lower one of them."
        )
    highest = (config.max_span_length + 1) / 2
    if config.masking == "span" and config.max_span_length > 1 and config.mean_span_length >= highest:
        raise ConfigError(
            f"objective.mean_span_length={config.mean_span_length} cannot be the mean of span lengths from 1 to objective.max_span_length="
            f"{config.max_span_length}, where longer spans are rarer: it must be below {highest:g}. Lower it or raise max_span_length "
            "(SpanBERT: 3.8 and 10)."
        )


def span_length_probs(config: MaskingConfig) -> np.ndarray:
    """Compute the probability of each length 1, ..., max_span_length of spans or n-grams, in words.

    Spans follow a geometric distribution, whose ratio is found by bisection so that the mean is `mean_span_length`.
    """
    lengths = np.arange(1, config.max_span_length + 1)
    if config.masking == "ngram":
        inverse = 1.0 / lengths
        return inverse / inverse.sum()
    low, high = 1e-9, 1.0  # bounds of the ratio p(n + 1) / p(n); the mean grows with it
    for _ in range(60):
        ratio = (low + high) / 2
        probs = ratio**lengths
        probs /= probs.sum()
        low, high = (ratio, high) if (probs * lengths).sum() < config.mean_span_length else (low, ratio)
    return probs


class Words(NamedTuple):
    """Words of rows.

    Attributes:
      number_BL: the word that each token belongs to; -1 for special tokens.
      length_BW: tokens of each word; 0 past a row's last word.
      run_BW: which run of text, between special tokens, each word belongs to, counted from 1; 0 past the last word.
    """

    number_BL: np.ndarray
    length_BW: np.ndarray
    run_BW: np.ndarray


def find_words(tokens_BL: np.ndarray, maskable_BL: np.ndarray, starts_word: np.ndarray) -> Words:
    """Divide the maskable tokens of each row into words.

    Example, where ids of "##" pieces do not start a word:

        tokens    <s>  the  cat  ##s  ran  </s>  ##ly  on  <pad>
        number    -1   0    1    1    2    -1    3     4   -1
        lengths of words 0 to 4: 1 2 1 1 1; their runs: 1 1 1 2 2
    """
    begins_BL = maskable_BL.copy()
    begins_BL[:, 1:] &= ~maskable_BL[:, :-1]
    run_BL = np.cumsum(begins_BL, axis=1)
    begins_BL |= maskable_BL & starts_word[tokens_BL]
    number_BL, length_BW = _number(begins_BL, maskable_BL)
    if length_BW.size and length_BW.max() > LONGEST_WORD:
        begins_BL |= maskable_BL & (np.take_along_axis(length_BW, number_BL, 1) > LONGEST_WORD)
        number_BL, length_BW = _number(begins_BL, maskable_BL)
    run_BW = np.zeros_like(length_BW)
    row, column = np.nonzero(begins_BL)
    run_BW[row, number_BL[row, column]] = run_BL[row, column]
    return Words(number_BL, length_BW, run_BW)


def _number(begins_BL: np.ndarray, maskable_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number words by their first tokens [B, L] (-1 outside of words) and count the tokens of each [B, W]."""
    count_BL = np.cumsum(begins_BL, axis=1)
    number_BL = np.where(maskable_BL, count_BL - 1, -1)
    words = int(count_BL.max())
    flat = number_BL + (np.arange(len(number_BL)) * words)[:, None]  # number in one bincount over all rows
    counts = np.bincount(flat[maskable_BL], minlength=words * len(number_BL))
    return number_BL, counts.reshape(len(number_BL), words)


class Masking:
    """Chooses the positions that are predicted and replaces their tokens.

    Each row has a stream of uniform draws. Counted from `start`, they decide

        0          ... L - 1          the order in which tokens or words are chosen
        L          ... L + M - 1      whether each chosen token is masked, randomized or kept
        L + M      ... L + 2M - 1     the random tokens
        L + 2M     ... 2L + 2M - 1    lengths of spans and n-grams
        2L + 2M    ... 3L + 2M - 1    whether each span is masked, randomized or kept (masking=span)
    """

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, length: int) -> None:
        self.config, self.length = config, length
        self.num_masked = num_masked(length, config.mask_rate)
        self.mask = tokenizer.mask_id
        self.ordinary_ids = np.setdiff1d(np.arange(tokenizer.size), tokenizer.special_ids).astype(np.int32)
        if config.masking != "token":
            self.starts_word = tokenizer.starts_word
        if config.masking in ("ngram", "span"):
            self.span_ends = np.cumsum(span_length_probs(config))[:-1]

    def __call__(
        self, tokens_BL: np.ndarray, maskable_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray, start: int
    ) -> dict[str, np.ndarray]:
        """Mask rows, in place.

        Example with M = 3: tokens [<s> a b c d </s>], of which b and d are chosen, b becomes the mask and d a random token x:

            tokens          <s> a [MASK] c x </s>
            mask_positions  2 4 0
            targets         b d 0
            weights         1 1 0

        Args:
          tokens_BL: ids of the rows.
          maskable_BL: where a token may be predicted.
          lengths_B: real tokens of each row, a fraction mask_rate of which is predicted.
          keys_B: keys of the rows' random streams.
          start: number of the first unused draw of these streams.

        Returns:
          tokens [B, L], mask_positions and targets [B, M] int32, weights [B, M] float32. Real positions come first, in
          the order of the text; the rest points at column 0 with weight 0.
        """
        num_masked, length = self.num_masked, self.length
        budget_B = np.clip(np.round(lengths_B * self.config.mask_rate), 1, num_masked).astype(np.int64)
        budget_B = np.minimum(budget_B, maskable_BL.sum(1))
        order_BL = uniform(keys_B, length, start)
        kind_BM = uniform(keys_B, num_masked, start + length)
        if self.config.masking == "token":
            chosen_BL = lowest_k_mask(np.where(maskable_BL, order_BL, 2.0), budget_B)
            chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
        else:
            words = find_words(tokens_BL, maskable_BL, self.starts_word)
            order_BW = np.where(words.length_BW > 0, order_BL[:, : words.length_BW.shape[1]], np.inf)
            if self.config.masking == "whole_word":
                chosen_BL = choose_words(words, order_BW, budget_B)
                chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
            else:
                draws_BW = uniform(keys_B, order_BW.shape[1], start + length + 2 * num_masked)
                span_BW = 1 + np.searchsorted(self.span_ends, draws_BW, side="right")
                chosen_BL, owner_BL = choose_spans(words, order_BW, span_BW, budget_B)
                chosen_BM, real_BM = positions_of(chosen_BL, num_masked)
                if self.config.masking == "span":  # all tokens of a span are treated alike
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
        """Replace the chosen tokens: by default 80% become [MASK], 10% a random token, and 10% stay unchanged.

        A draw `kind` below 1 - keep - random gives [MASK], one below 1 - keep a random token, others keep the token.
        """
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


def choose_words(words: Words, order_BW: np.ndarray, budget_B: np.ndarray) -> np.ndarray:
    """Choose whole words, bool [B, L]: go through them in ascending `order` and take each that still fits the budget of tokens.

    A row whose words are all longer than its budget takes the first tokens of the first word.

    Example: words of 3, 2, 1 and 1 tokens, order [0.2, 0.1, 0.4, 0.3], budget 3. Word 1 is taken (1 token left), word 0 does not
    fit, word 3 is taken (0 left), and word 2 does not fit.
    """
    if not order_BW.size:
        return np.zeros(words.number_BL.shape, bool)
    rank_BW = np.argsort(order_BW)
    rows, remaining_B = np.arange(len(rank_BW)), budget_B.copy()
    chosen_BW = np.zeros(rank_BW.shape, bool)
    for word_B in rank_BW.T:  # the first word of every row, then the second, ...
        length_B = words.length_BW[rows, word_B]
        fits_B = length_B <= remaining_B
        chosen_BW[rows, word_B] = fits_B
        remaining_B -= length_B * fits_B
    chosen_BL = np.take_along_axis(chosen_BW, words.number_BL, 1) & (words.number_BL >= 0)
    empty = np.flatnonzero(~chosen_BL.any(1))
    in_first = words.number_BL[empty] == rank_BW[empty, :1]
    chosen_BL[empty] = in_first & (np.cumsum(in_first, axis=1) <= budget_B[empty, None])
    return chosen_BL


def choose_spans(
    words: Words, order_BW: np.ndarray, span_BW: np.ndarray, budget_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose spans of words: go through the words in ascending `order` and begin a span at each that no earlier span covers.

    A span covers the next `span` words of its run, except those that earlier spans cover. Spans are added until they cover the
    budget of tokens; the last one is cut at its end.

    Example: 8 words of one token; words 5 to 7 are a second run; order [.9 .8 .7 .1 .2 .6 .5 .3], spans of 3 words, budget 5.
    Word 3 covers 3 and 4, where its run ends. Word 4 is covered. Word 7 covers 7, word 6 covers 6, and word 5 covers 5.

    Returns:
      bool [B, L], the chosen tokens; int64 [B, L], the first word of the span that covers each chosen token.
    """
    rows, count = order_BW.shape
    if not count:
        return np.zeros(words.number_BL.shape, bool), words.number_BL
    row_B, remaining_B = np.arange(rows), budget_B.copy()
    offset_K = np.arange(int(span_BW.max()))
    covered_by_BW = np.full((rows, count), np.inf)  # order of the covering span
    owner_BW = np.zeros((rows, count), np.int64)  # its first word
    for first_B in np.argsort(order_BW).T:  # the first word of every row, then the second, ...
        if not (remaining_B > 0).any():
            break
        begins_B = np.isinf(covered_by_BW[row_B, first_B])
        row_S, offset_S = np.nonzero(begins_B[:, None] & (offset_K < span_BW[row_B, first_B][:, None]))
        first_S, word_S = first_B[row_S], first_B[row_S] + offset_S
        inside_S = word_S < count
        row_S, first_S, word_S = row_S[inside_S], first_S[inside_S], word_S[inside_S]
        free_S = np.isinf(covered_by_BW[row_S, word_S]) & (words.run_BW[row_S, word_S] == words.run_BW[row_S, first_S])
        row_S, first_S, word_S = row_S[free_S], first_S[free_S], word_S[free_S]
        covered_by_BW[row_S, word_S] = order_BW[row_S, first_S]
        owner_BW[row_S, word_S] = first_S
        np.subtract.at(remaining_B, row_S, words.length_BW[row_S, word_S])
    # The tokens of all spans, in the order of the spans and within a span in that of the text, up to the budget.
    covered_by_BL = np.where(words.number_BL >= 0, np.take_along_axis(covered_by_BW, words.number_BL, 1), np.inf)
    order_BL = np.argsort(covered_by_BL, kind="stable")
    chosen_BL = np.zeros(order_BL.shape, bool)
    np.put_along_axis(chosen_BL, order_BL, np.arange(order_BL.shape[1]) < budget_B[:, None], 1)
    return chosen_BL, np.take_along_axis(owner_BW, words.number_BL, 1)

"""Denoising (BART; Lewis et al. 2019, section 2.2): the source is a corrupted text, and the target is the original.

Corruptions, in this order: sentences are permuted; tokens are deleted; spans with lengths from a Poisson distribution are each
replaced by one mask, and spans of length 0 insert a mask; the text is rotated to begin at a random token. The defaults are those of
the paper's large model (section 5.1): infilling of 30% with a mean of 3, and permutation.

    text      A B . C D E .
    permuted  C D E . A B .
    deleted   C D E . A .         (B)
    infilled  C [MASK] . A .      (the span D E)
    rotated   . A . C [MASK]      (begins at the third token)

A text is a chunk of a document that fills a row. Source and target are <s> text </s>, and the decoder starts from </s>, as in
the authors' code.

Legend: B batch, P texts of a batch, N tokens of a text, K spans of a text.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
from typing_extensions import override

from lm_research.config import Config, key
from lm_research.data.stateless_rng import uniform, uniform_draw
from lm_research.data.store import TokenStore
from lm_research.objectives.base import OBJECTIVES
from lm_research.objectives.encoder_decoder import RaggedTexts, SourceTargetConfig, SourceTargetExamples, SourceToTarget
from lm_research.objectives.packing import split_documents
from lm_research.objectives.ragged import copy_pieces, lowest_k_mask, ragged, ragged_uniform
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class DenoisingConfig(SourceTargetConfig):
    """Settings of objective.name=denoising."""

    default_start: ClassVar[str] = "eos"

    text_infilling_prob: float = key(
        0.3, "Fraction of tokens in spans that are each replaced by one mask token.", low=0.0, high=0.95
    )
    mean_span_length: float = key(3.0, "Mean length of these spans, in tokens.", low=1.0, high=100.0)
    permute_sentence_prob: float = key(1.0, "Fraction of examples whose sentences are shuffled.", low=0.0, high=1.0)
    token_deletion_prob: float = key(0.0, "Fraction of tokens to delete.", low=0.0, high=0.95)
    document_rotation_prob: float = key(
        0.0, "Fraction of examples that are rotated to start at a random token.", low=0.0, high=1.0
    )


def poisson_ends(mean: float) -> np.ndarray:
    """Compute the Poisson distribution function at 0, 1, ..., up to a remainder of 1e-12; a draw below entry n gives length n or less."""
    lengths = np.arange(int(mean + 12 * math.sqrt(mean) + 12))
    logs = lengths * math.log(mean) - mean - np.cumsum(np.log(np.maximum(lengths, 1)))
    return np.cumsum(np.exp(logs))


class DenoisedTexts(SourceTargetExamples):
    """Corrupted texts and their originals, addressed by number."""

    # Numbers of the draws of a text's stream. PERMUTE, ROTATE and ROTATION are single draws; the others count blocks of `max_tokens` draws.
    PERMUTE, ROTATE, ROTATION, DELETE, SPANS, PLACES, SENTENCES = 0, 1, 2, 3, 4, 5, 6

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str) -> None:
        self.bos, self.mask = tokenizer.bos_id, tokenizer.mask_id
        self.max_tokens = config.data.max_length - 2
        self.pieces = split_documents(store, self.max_tokens)
        self.rates = DenoisingConfig.of(config.objective)
        self.span_ends = poisson_ends(self.rates.mean_span_length)
        sizes = np.stack([self.pieces.lengths + 2] * 2, axis=1)
        super().__init__(store, tokenizer, config, purpose, (config.data.max_length,) * 2, sizes)

    @override
    def make(self, epoch_P: np.ndarray, item_P: np.ndarray, keys_P: np.ndarray) -> tuple[RaggedTexts, RaggedTexts]:
        start_P, length_P = self.pieces.starts[item_P], self.pieces.lengths[item_P]
        piece_T, offset_T = ragged(length_P)
        tokens = np.asarray(self.store.tokens[start_P[piece_T] + offset_T], np.int32)
        rows = len(length_P)
        text_PN = np.zeros((rows, int(length_P.max(initial=1))), np.int32)
        text_PN[piece_T, offset_T] = tokens[self._permuted(start_P, length_P, keys_P)]
        left_P = length_P
        if self.rates.token_deletion_prob:
            text_PN, left_P = self._deleted(text_PN, left_P, keys_P)
        if self.rates.text_infilling_prob:
            text_PN, left_P = self._infilled(text_PN, left_P, length_P, keys_P)
        piece_T, offset_T = ragged(left_P)
        if self.rates.document_rotation_prob:
            offset_T = (offset_T + self._rotation(left_P, keys_P)[piece_T]) % left_P[piece_T]
        return self._framed(text_PN[piece_T, offset_T], left_P), self._framed(tokens, length_P)

    def _framed(self, tokens: np.ndarray, lengths_P: np.ndarray) -> RaggedTexts:
        """Surround each text with <s> and </s>."""
        sizes_P = lengths_P + 2
        texts = RaggedTexts(np.full(sizes_P.sum(), self.eos, np.int32), sizes_P)
        texts.tokens[texts.starts] = self.bos
        row_P, start_P = np.zeros_like(lengths_P), np.cumsum(lengths_P) - lengths_P
        copy_pieces(texts.tokens[None], row_P, texts.starts + 1, tokens, start_P, lengths_P)
        return texts

    def _permuted(self, start_P: np.ndarray, length_P: np.ndarray, keys_P: np.ndarray) -> np.ndarray:
        """Compute which token each place of the permuted texts takes, [T]. Parts of sentences cut by a text's ends count as sentences.

        Example: sentences [0 1 2] and [3 4] in the order 1, 0 give [3, 4, 0, 1, 2].
        """
        boundaries = np.asarray(self.store.sentence_starts)
        first_P = np.searchsorted(boundaries, start_P, side="right") - 1
        last_P = np.searchsorted(boundaries, start_P + length_P)
        text, number = ragged(last_P - first_P)
        begin = np.maximum(boundaries[first_P[text] + number], start_P[text])
        end = np.minimum(boundaries[first_P[text] + number + 1], (start_P + length_P)[text])
        moved = uniform_draw(keys_P, self.PERMUTE) < self.rates.permute_sentence_prob
        draws = ragged_uniform(keys_P, last_P - first_P, self.SENTENCES * self.max_tokens)
        order = np.lexsort((np.where(moved[text], draws, number), text))
        # In a batch's tokens text p begins where its predecessors end; in the store at start_P.
        shift = (np.cumsum(length_P) - length_P - start_P)[text]
        sentence, offset = ragged((end - begin)[order])
        return (begin + shift)[order][sentence] + offset

    def _deleted(self, text_PN: np.ndarray, left_P: np.ndarray, keys_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Delete a fraction of each text's tokens, but not all of them; returns the texts [P, N] and their lengths.

        Example: a b c d with draws [.7 .2 .9 .4] and 2 tokens to delete loses the tokens of the lowest draws, b and d: a c.
        """
        real_PN = np.arange(text_PN.shape[1]) < left_P[:, None]
        draws_PN = uniform(keys_P, text_PN.shape[1], self.DELETE * self.max_tokens)
        count_P = np.minimum(np.round(left_P * self.rates.token_deletion_prob), left_P - 1).astype(np.int64)
        stays_PN = real_PN & ~lowest_k_mask(np.where(real_PN, draws_PN, 2.0), count_P)
        out_PN = np.zeros_like(text_PN)
        out_PN[np.arange(text_PN.shape[1]) < (left_P - count_P)[:, None]] = text_PN[stays_PN]
        return out_PN, left_P - count_P

    def _infilled(
        self, text_PN: np.ndarray, left_P: np.ndarray, limit_P: np.ndarray, keys_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replace spans by one mask each; returns the texts [P, N] and their lengths, at most `limit`.

        Span lengths are drawn until they reach the fraction of tokens; the last one is cut. The spans, including empty ones, and
        the tokens that stay are items, and all orders of the items are equally likely.

        Example: a b c d e with 3 tokens in spans and draws of the lengths 2, 0, 2. Their sums before are 0, 2, 2, all below 3, so three
        spans are used and the last is cut to 1. Two tokens stay, which makes 5 items. If items 4, 1 and 0 are the first three of
        the random order, they are the spans of 2, 0 and 1 tokens:

            items   span of 1 (a), span of 0, token b, token c, span of 2 (d e)
            result  [MASK] [MASK] b c [MASK]
        """
        count = text_PN.shape[1]
        budget_P = np.round(left_P * self.rates.text_infilling_prob).astype(np.int64)
        span_PK = np.searchsorted(self.span_ends, uniform(keys_P, count, self.SPANS * self.max_tokens), side="right")
        before_PK = np.cumsum(span_PK, axis=1) - span_PK
        used_PK = before_PK < budget_P[:, None]
        span_PK = np.where(used_PK, np.minimum(span_PK, budget_P[:, None] - before_PK), 0)
        stay_P = left_P - span_PK.sum(1)
        empty_PK = used_PK & (span_PK == 0)
        # Empty spans make a text longer. Those that would make it too long are dropped.
        spare_P = limit_P - stay_P - (span_PK > 0).sum(1)
        used_PK &= ~empty_PK | (np.cumsum(empty_PK, axis=1) <= spare_P[:, None])
        # Move the used spans to the front. The first items of a text's random order become its spans, the others tokens.
        front_PK = np.argsort(~used_PK, kind="stable")
        span_PK, spans_P = np.take_along_axis(span_PK, front_PK, 1), used_PK.sum(1)
        items_P = stay_P + spans_P
        item_N = np.arange(int(items_P.max(initial=1)))
        real_PN = item_N < items_P[:, None]
        draws_PN = uniform(keys_P, len(item_N), self.PLACES * self.max_tokens)
        order_PN = np.argsort(np.where(real_PN, draws_PN, 2.0))
        is_span_PN, size_PN = np.zeros(real_PN.shape, bool), np.ones(real_PN.shape, np.int64)
        row, k = np.nonzero(np.arange(count) < spans_P[:, None])
        is_span_PN[row, order_PN[row, k]] = True
        size_PN[row, order_PN[row, k]] = span_PK[row, k]
        # Each item begins where the sizes of the items before it add up to.
        token_PN = np.minimum(np.cumsum(size_PN, axis=1) - size_PN, count - 1)
        return np.where(is_span_PN, self.mask, np.take_along_axis(text_PN, token_PN, 1)), items_P

    def _rotation(self, left_P: np.ndarray, keys_P: np.ndarray) -> np.ndarray:
        """Draw how many tokens move from the front of each text to its end."""
        rotates_P = uniform_draw(keys_P, self.ROTATE) < self.rates.document_rotation_prob
        return np.where(rotates_P, (uniform_draw(keys_P, self.ROTATION) * left_P).astype(np.int64), 0)


@OBJECTIVES.register("denoising", DenoisingConfig)
class Denoising(SourceToTarget):
    """Reconstruct the original text from its corrupted form."""

    @override
    def examples(self, store: TokenStore, purpose: str) -> DenoisedTexts:
        return DenoisedTexts(store, self.tokenizer, self.config, purpose)

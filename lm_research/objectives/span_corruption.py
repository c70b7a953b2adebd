"""Span corruption (T5; Raffel et al. 2019, section 3.1.4): sentinels replace spans, and the target contains the spans.

    text    Thank you for inviting me to your party last week .
    source  Thank you <extra_id_0> me to your party <extra_id_1> week .
    target  <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

as in the paper's figure 2; like the authors' code, the target ends with the end token instead of a last sentinel. The text
is cut into the longest windows whose sources fit: with 15% in spans of 3, 568 tokens become 512 of source and 114 of target,
both exactly full. Windows cross the ends of documents, as the authors' do; with `data.packing` they do not.

Legend: B batch, S source length, P texts of a batch, K spans of a text.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from typing_extensions import override

from lm_research.common.rounding import ceil_div
from lm_research.config import Config, key
from lm_research.data.stateless_rng import example_keys, uniform, uniform_draw
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError, TokenizerError
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import OBJECTIVES
from lm_research.objectives.encoder_decoder import RaggedTexts, SourceTargetConfig, SourceTargetExamples, SourceToTarget
from lm_research.objectives.packing import DocumentChunks, split_documents
from lm_research.objectives.ragged import copy_pieces, lowest_k_mask, positions_of
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class SpanCorruptionConfig(SourceTargetConfig):
    """Settings of objective.name=span_corruption."""

    mask_rate: float = key(0.15, "Fraction of tokens to corrupt.", low=0.001, high=0.95)
    mean_span_length: float = key(3.0, "Mean span length in tokens.", low=1.0, high=100.0)


def count_spans(length: np.ndarray | int, rate: float, mean_span_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute how many tokens of texts are in spans and how many spans there are; at least one token is kept before each span.

    Example: 20 tokens at a rate of 0.15 and a mean of 3 give 3 tokens in 1 span; 40 tokens give 6 in 2.
    """
    length = np.asarray(length, np.int64)
    noise = np.minimum(np.maximum(np.round(length * rate).astype(np.int64), 1), length - 1)
    spans = np.minimum(np.round(noise / mean_span_length).astype(np.int64), length - noise)
    return noise, np.maximum(spans, 1)


def source_target_sizes(length: np.ndarray | int, rate: float, mean_span_length: float) -> np.ndarray:
    """Compute the lengths of sources and targets [..., 2] of texts [...]; both have one sentinel per span and an end token."""
    noise, spans = count_spans(length, rate, mean_span_length)
    return np.stack([length - noise + spans + 1, noise + spans + 1], axis=-1)


def window_length(source_length: int, rate: float, mean_span_length: float) -> int:
    """Find the longest text whose source has at most `source_length` tokens."""
    lengths = np.arange(int(source_length / (1 - rate)))  # sources have all kept tokens and two more at least
    sources = source_target_sizes(lengths, rate, mean_span_length)[:, 0]
    return int(lengths[sources <= source_length].max())


def find_sentinels(tokenizer: Tokenizer, count: int) -> np.ndarray:
    """Look up the ids of <extra_id_0>, <extra_id_1>, ...; in T5's vocabularies these are the highest ids, in descending order.

    Raises:
      TokenizerError: the tokenizer has fewer than `count`.
    """
    names = [f"<extra_id_{number}>" for number in range(count)]
    ids = [tokenizer.token_id(name) for name in names]
    ids = [tokenizer.token_id(f"\u2581{name}") if i is None else i for name, i in zip(names, ids, strict=True)]
    if None in ids:
        found = ids.index(None)
        raise TokenizerError(
            f"objective.name=span_corruption needs {count} sentinel tokens, <extra_id_0> to <extra_id_{count - 1}>, for the "
            f"spans of these examples, but the tokenizer has {found or 'none'} of them. Use a tokenizer like T5's "
            f"(--config.tokenizer.path=FOLDER), or train one with sentinels (--config.tokenizer.sentinels={count})"
            + (", or shorten the rows (--config.data.max_length)." if found else ".")
        )
    return np.asarray(ids, np.int32)


def compose(total_P: np.ndarray, parts_P: np.ndarray, draws_PR: np.ndarray) -> np.ndarray:
    """Draw random compositions [P, K]: `parts` positive integers per row that add up to `total`, all equally likely.

    Needs total - 1 draws for each row. With one part, `total` may be 0.

    Example: total 5 and 3 parts. There are 4 places to cut between 5 tokens, and draws [.7 .2 .9 .4] choose the lowest two, places
    1 and 3: o o | o o | o, which is [2, 2, 1].
    """
    allowed = np.arange(draws_PR.shape[1]) < (total_P - 1)[:, None]
    cuts = lowest_k_mask(np.where(allowed, draws_PR, 2.0), parts_P - 1) & allowed
    parts = int(parts_P.max(initial=1))
    ends, real = positions_of(cuts, parts - 1)
    ends = np.where(real, ends + 1, total_P[:, None])
    ends = np.concatenate([np.zeros_like(total_P)[:, None], ends, total_P[:, None]], axis=1)
    return np.diff(ends)


class CorruptedSpans(SourceTargetExamples):
    """Sources with sentinels in place of spans, and targets with the spans, addressed by number."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str) -> None:
        objective = SpanCorruptionConfig.of(config.objective)
        self.rates = objective.mask_rate, objective.mean_span_length
        self.window = window_length(config.data.max_length, *self.rates)
        self.pieces = split_documents(store, self.window) if config.data.packing else None
        if self.pieces:
            lengths = self.pieces.lengths
        else:
            count = ceil_div(store.num_tokens, self.window)
            lengths = np.full(count, self.window)
            if purpose != "train":  # training wraps around, validation reads the text once
                lengths[-1] = store.num_tokens - (count - 1) * self.window
        target_length = int(source_target_sizes(self.window, *self.rates)[1])
        sizes = source_target_sizes(lengths, *self.rates)
        self.lengths = lengths
        self.sentinels = find_sentinels(tokenizer, int(count_spans(self.window, *self.rates)[1]))
        super().__init__(store, tokenizer, config, purpose, (config.data.max_length, target_length), sizes)

    def _read(self, epoch_P: np.ndarray, item_P: np.ndarray) -> tuple[np.ndarray, DocumentChunks]:
        """Read the tokens of the texts, one text after another, and where each begins."""
        lengths = self.lengths[item_P]
        starts = np.cumsum(lengths) - lengths
        if self.pieces:
            first = self.pieces.starts[item_P]
        else:
            first = item_P * self.window
            if self.purpose == "train":  # each epoch cuts at a different place
                keys = example_keys(self.config.seed, f"{self.purpose}/shift", epoch_P, np.zeros_like(item_P))
                first = first + (uniform_draw(keys) * self.window).astype(np.int64)
        position = np.repeat(first - starts, lengths) + np.arange(lengths.sum())
        return self.store.tokens[position % self.store.num_tokens].astype(np.int32), DocumentChunks(starts, lengths)

    @override
    def make(self, epoch_P: np.ndarray, item_P: np.ndarray, keys_P: np.ndarray) -> tuple[RaggedTexts, RaggedTexts]:
        tokens, (start_P, length_P) = self._read(epoch_P, item_P)
        noise_P, spans_P = count_spans(length_P, *self.rates)
        draws = uniform(keys_P, self.window + int(noise_P.max(initial=0)))
        kept_PK = compose(length_P - noise_P, spans_P, draws[:, : self.window])
        noise_PK = compose(noise_P, spans_P, draws[:, self.window :])
        return corrupt(tokens, start_P, kept_PK, noise_PK, spans_P, self.sentinels, self.eos)


def corrupt(
    tokens: np.ndarray,
    start_P: np.ndarray,
    kept_PK: np.ndarray,
    noise_PK: np.ndarray,
    spans_P: np.ndarray,
    sentinels: np.ndarray,
    eos: int,
) -> tuple[RaggedTexts, RaggedTexts]:
    """Make the sources and targets of texts that alternate between kept tokens and spans, kept tokens first.

    Example: text a b c d e f g with kept [2, 1] and noise [1, 3] is a b [c] d [e f g]. With sentinels X, Y and end token $:

        source  a b X d Y $
        target  X c Y e f g $

    Args:
      tokens: ids of all texts, one text after another.
      start_P: where each text begins in `tokens`.
      kept_PK: tokens before each span; 0 past a text's last span.
      noise_PK: tokens in each span; 0 past a text's last span.
      spans_P: number of spans of each text.
      sentinels: ids of at least K sentinels.
      eos: id of the end token.
    """
    column_K = np.arange(kept_PK.shape[1])
    real_PK = column_K < spans_P[:, None]
    both_PK = kept_PK + noise_PK
    kept_start_PK = start_P[:, None] + np.cumsum(both_PK, axis=1) - both_PK
    sentinel_PK = np.broadcast_to(sentinels[: len(column_K)], real_PK.shape)
    result = []
    for count_PK, first_PK, is_source in ((kept_PK, kept_start_PK, True), (noise_PK, kept_start_PK + kept_PK, False)):
        lengths_P = count_PK.sum(1) + spans_P + 1
        out = np.full(lengths_P.sum(), eos, np.int32)
        unit_PK = count_PK + 1  # with its sentinel, which comes last in the source and first in the target
        at_PK = (np.cumsum(lengths_P) - lengths_P)[:, None] + np.cumsum(unit_PK, axis=1) - unit_PK
        at, count, first = at_PK[real_PK], count_PK[real_PK], first_PK[real_PK]
        out[at + count if is_source else at] = sentinel_PK[real_PK]
        copy_pieces(out[None], np.zeros_like(at), at + (not is_source), tokens, first, count)
        result.append(RaggedTexts(out, lengths_P))
    return result[0], result[1]


@OBJECTIVES.register("span_corruption", SpanCorruptionConfig)
class SpanCorruption(SourceToTarget):
    """Generate the spans that sentinels replace."""

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        objective = SpanCorruptionConfig.of(config.objective)
        rate, mean, source = objective.mask_rate, objective.mean_span_length, config.data.max_length
        target = int(source_target_sizes(window_length(source, rate, mean), rate, mean)[1])
        if arch.max_length and target > arch.max_length:
            raise ConfigError(
                f"objective.mask_rate={rate} with sources of data.max_length={source} gives targets of {target} tokens, but "
                f"the model has {arch.max_length} positions. Lower mask_rate or data.max_length, or raise model.max_length."
            )

    @override
    def examples(self, store: TokenStore, purpose: str) -> CorruptedSpans:
        return CorruptedSpans(store, self.tokenizer, self.config, purpose)

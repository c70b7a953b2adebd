"""Next-token prediction over packed rows.

The corpus is one stream in which every document begins with the separator token, so that the separator both ends a
text and starts the next. The stream is cut into rows of L tokens, without padding and without dropping a token. A document
is a segment: attention does not cross into another, and positions restart (a document cut by a row's end continues in
another row without its past). Each epoch cuts at a different offset.

Legend: B batch, L length.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from typing_extensions import override

from lm_research.common.rounding import ceil_div
from lm_research.config import Config
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys, uniform_draw
from lm_research.data.store import TokenStore
from lm_research.models.heads import Projection
from lm_research.objectives.base import (
    OBJECTIVES,
    Batch,
    NextTokenObjective,
    SmoothedConfig,
    TextObjective,
    label_smoothing,
)
from lm_research.tokenizers.base import Tokenizer


class PackedRows(Examples):
    """Rows of L tokens and their successors, addressed by number."""

    def __init__(self, store: TokenStore, length: int, separator: int, seed: int, purpose: str) -> None:
        self.store, self.length, self.separator, self.seed, self.purpose = store, length, separator, seed, purpose
        token_starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
        # Start of each document in the stream, where every document is one token (its separator) longer.
        self.stream_starts = token_starts + np.arange(len(token_starts))
        self.stream_length = int(self.stream_starts[-1])
        self.wraps = purpose == "train"
        # Training reads the stream as a ring. Validation reads it once; its last token has no successor.
        self.num_examples = ceil_div(self.stream_length - (not self.wraps), length)

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch with tokens, targets, positions, segments [B, L] int32 and weights [B, L] float32.

        Example: documents [a b c] and [d e] with separator | make the stream "| a b c | d e". With L = 4 and shift 1, row 0 is

            tokens     a  b  c  |
            targets    b  c  |  d
            positions  0  1  2  0
            segments   1  1  1  2

        In training row 1 continues at the front: "d e | a" with targets "e | a b".
        """
        shift_B = np.zeros_like(index_B)
        if self.wraps:
            keys_B = example_keys(self.seed, f"{self.purpose}/shift", epoch_B, np.zeros_like(index_B))
            shift_B = (uniform_draw(keys_B) * self.length).astype(np.int64)
        stream_pos = (shift_B + index_B * self.length)[:, None] + np.arange(self.length + 1)
        real = np.broadcast_to((index_B >= 0)[:, None], stream_pos.shape)
        if not self.wraps:
            real = real & (stream_pos < self.stream_length)
        stream_pos = np.where(real, stream_pos % self.stream_length, 0)
        document = np.searchsorted(self.stream_starts, stream_pos, side="right") - 1
        offset = stream_pos - self.stream_starts[document]
        starts = offset == 0
        # The store has no separators: there the token at `stream_pos` comes document + 1 places earlier.
        token = np.where(starts, self.separator, self.store.tokens[stream_pos - document - 1]).astype(np.int32)
        column = np.arange(self.length + 1)
        positions = column - np.maximum.accumulate(np.where(starts, column, 0), axis=1)
        segments = 1 + np.cumsum(starts[:, 1:-1], axis=1)
        segments = np.concatenate([np.ones((len(stream_pos), 1), np.int32), segments], axis=1)
        inputs = real[:, :-1]
        return {
            "tokens_BL": np.where(inputs, token[:, :-1], 0).astype(np.int32),
            "targets_BL": np.where(real[:, 1:], token[:, 1:], 0).astype(np.int32),
            "positions_BL": positions[:, :-1].astype(np.int32),
            "segments_BL": np.where(inputs, segments, 0).astype(np.int32),
            "weights_BL": real[:, 1:].astype(np.float32),
        }


class NextTokenOfDecoder(NextTokenObjective):
    """Mean negative log-likelihood of the next token of a decoder's rows."""

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": batch["weights_BL"].sum(), "real": (batch["segments_BL"] > 0).sum().astype("float32")}

    @override
    def projection(self, model: Any, batch: Batch, key: jax.Array | None) -> Projection:
        x_BLD = model.decoder(batch["tokens_BL"], batch["segments_BL"], batch["positions_BL"], dropout_key=key)
        return model.predict_tokens(x_BLD)


@OBJECTIVES.register("causal_lm", SmoothedConfig)
class CausalLanguageModel(TextObjective, NextTokenOfDecoder):
    """Mean negative log-likelihood of the next token."""

    kinds = ("decoder",)

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        NextTokenOfDecoder.__init__(self, label_smoothing(config))
        super().__init__(config, tokenizer)

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "causal_lm"

    @override
    def examples(self, store: TokenStore, purpose: str) -> PackedRows:
        return PackedRows(store, self.config.data.max_length, self.tokenizer.sep_id, self.config.seed, purpose)

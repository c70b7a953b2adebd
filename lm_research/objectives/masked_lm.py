"""Masked language modeling, optionally with classification of segment pairs.

The default is BERT's pre-training (Devlin et al. 2018, section 3.1): tokens masked 80/10/10, and whether B follows A.
sentence_pair="sentence_order" is ALBERT's (Lan et al. 2019), and "none" is RoBERTa's (Liu et al. 2019), where `data.packing` fills
rows with several texts. segment_pairs.py cuts rows and masking.py masks them.

Legend: B batch, L length, M masked positions, P texts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research.config import Config, key
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import OBJECTIVES, Batch, SmoothedConfig, Sums, TextObjective, label_smoothing
from lm_research.objectives.cross_entropy import smoothing, token_loss
from lm_research.objectives.masking import Masking, MaskingConfig, check_masking, num_masked
from lm_research.objectives.packing import DocumentChunks, describe_rows, one_per_row, pack, split_documents, unpack
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.objectives.segment_pairs import TRUNCATE, PairReader, Segments
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class MaskedLMConfig(MaskingConfig, SmoothedConfig):
    """Settings of objective.name=masked_lm."""

    sentence_pair: str = key(
        "next_sentence",
        "What to predict for a pair of segments: whether the second follows the first (BERT), whether they are in "
        "order (ALBERT), or none, which makes sequences of one segment.",
        choices=("next_sentence", "sentence_order", "none"),
    )


class MaskedPairs(Examples):
    """Rows [CLS] A [SEP] B [SEP], or [CLS] A [SEP] (several of them if packed), with masked tokens, addressed by number."""

    def __init__(
        self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str, pairs: str | None = None
    ) -> None:
        self.store, self.config, self.purpose = store, config, purpose
        self.length = config.data.max_length
        self.pairs = pairs or MaskedLMConfig.of(config.objective).sentence_pair
        self.cls, self.sep, self.pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
        settings = MaskingConfig.of(config.objective)
        if settings.eval_mask_rate and purpose != "train":
            settings = dataclasses.replace(settings, mask_rate=settings.eval_mask_rate)
        self.dupe_factor, self.masking = settings.dupe_factor, Masking(settings, tokenizer, self.length)
        self.num_special = 2 if self.pairs == "none" else 3
        self.source: DocumentChunks | PairReader
        if config.data.packing:
            self.source = pieces = split_documents(store, self.length - self.num_special)
            sizes = pieces.lengths + self.num_special
            self.packs = pack(sizes, self.length)
            self.notes = f"{describe_rows(sizes, self.length, self.packs)}, no token dropped"
        else:
            self.source = reader = PairReader(
                store, self.length - self.num_special, self.pairs, settings.short_seq_prob
            )
            self.packs = one_per_row(len(reader.chunks))
            lengths = reader.chunk_lengths()
            sizes = np.minimum(lengths, reader.max_length) + self.num_special
            dropped = (lengths - reader.max_length).clip(0).sum() / lengths.sum()
            self.notes = f"{describe_rows(sizes, self.length, self.packs)} (not counting short examples), {dropped:.1%} of tokens cut off"
        self.num_examples = len(self.packs)

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch of masked rows.

        Example of the rows before masking, with A = a b and B = c:

            tokens    [CLS] a b [SEP] c [SEP] [PAD]
            types       0   0 0   0   1   1     0
            segments    1   1 1   1   1   1     0

        Returns:
          tokens, types, segments [B, L] int32; mask_positions, targets [B, M] int32; weights [B, M] float32; next_sentence [B] int32
          (1 = B does not follow A) and row_weights [B] float32; for packed rows also positions [B, L].
        """
        if self.dupe_factor:
            epoch_B = epoch_B % self.dupe_factor
        keys_B = example_keys(self.config.seed, f"{self.purpose}/masked_lm", epoch_B, index_B)
        tokens_BL = np.full((len(index_B), self.length), self.pad, np.int32)
        types_BL, segments_BL, positions_BL = (np.zeros_like(tokens_BL) for _ in range(3))
        maskable_BL = np.zeros(tokens_BL.shape, bool)
        next_B, weights_B = np.zeros(len(index_B), np.int32), (index_B >= 0).astype(np.float32)

        row_P, item_P = unpack(self.packs, index_B)
        start_a, a, start_b, b, switched = self._segments(item_P, keys_B[row_P])
        size_P = a + b + self.num_special
        column_P = exclusive_cumsum(size_P, row_P)
        copy_pieces(tokens_BL, row_P, column_P + 1, self.store.tokens, start_a, a)
        mark_pieces(maskable_BL, row_P, column_P + 1, a, True)
        tokens_BL[row_P, column_P] = self.cls
        tokens_BL[row_P, column_P + 1 + a] = self.sep
        if self.pairs != "none":
            copy_pieces(tokens_BL, row_P, column_P + 2 + a, self.store.tokens, start_b, b)
            mark_pieces(maskable_BL, row_P, column_P + 2 + a, b, True)
            mark_pieces(types_BL, row_P, column_P + 2 + a, b + 1, 1)
            tokens_BL[row_P, column_P + 2 + a + b] = self.sep
            next_B[row_P] = switched
            weights_B[row_P] *= (a > 0) & (b > 0)  # a single token cannot be divided into a pair
        mark_pieces(segments_BL, row_P, column_P, size_P, 1 + exclusive_cumsum(np.ones_like(row_P), row_P))
        batch = {"types_BL": types_BL, "segments_BL": segments_BL}
        if isinstance(self.source, DocumentChunks):
            mark_pieces(positions_BL, row_P, column_P, size_P, None)
            batch["positions_BL"] = positions_BL
        lengths_B = (segments_BL > 0).sum(1)
        batch |= self.masking(tokens_BL, maskable_BL, lengths_B, keys_B, TRUNCATE + 2 * self.length)
        return batch | {"next_sentence_B": next_B, "row_weights_B": weights_B}

    def _segments(self, item_P: np.ndarray, keys_P: np.ndarray) -> Segments:
        if isinstance(self.source, PairReader):
            return self.source.read(item_P, keys_P)
        none = np.zeros_like(item_P)
        return Segments(self.source.starts[item_P], self.source.lengths[item_P], none, none, none.astype(bool))


class MaskedTokenObjective(TextObjective):
    """An objective that predicts masked tokens of an encoder's rows: [B, M] targets and weights."""

    kinds = ("encoder",)
    token_loss_name = "mlm_loss_nats"

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        length = config.data.max_length
        self.target_fraction = num_masked(length, MaskingConfig.of(config.objective).mask_rate) / length

    @override
    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch["targets_BM"], batch["weights_BM"]


@OBJECTIVES.register("masked_lm", MaskedLMConfig)
class MaskedLanguageModel(MaskedTokenObjective):
    """Mean negative log-likelihood of masked tokens, plus that of the segment pairs' label if there is one."""

    normalizer_names = ("tokens", "real", "rows")

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        metrics = {"mlm_loss_nats": "tokens", "mlm_accuracy": "tokens"}
        self.loss_terms = ("mlm_loss_nats",)
        pairs = MaskedLMConfig.of(config.objective).sentence_pair
        self.pair_name = {"next_sentence": "nsp", "sentence_order": "sop", "none": ""}[pairs]
        if self.pair_name:
            metrics |= {f"{self.pair_name}_loss_nats": "rows", f"{self.pair_name}_accuracy": "rows"}
            self.loss_terms += (f"{self.pair_name}_loss_nats",)
        self.label_smoothing = label_smoothing(config)
        if self.label_smoothing:
            metrics["smoothing_nats"] = "tokens"
            self.loss_terms += ("smoothing_nats",)
        self.metrics = metrics

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "masked_lm" if MaskedLMConfig.of(config.objective).sentence_pair == "none" else "pretraining"

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        objective = MaskedLMConfig.of(config.objective)
        check_masking(objective)
        if config.data.packing and objective.sentence_pair != "none":
            raise ConfigError(
                f"data.packing=True puts several texts into a row, but objective.sentence_pair={objective.sentence_pair} "
                f"needs rows of one pair. Set --config.objective.sentence_pair=none, or --config.data.packing=False."
            )

    @override
    def examples(self, store: TokenStore, purpose: str) -> MaskedPairs:
        return MaskedPairs(store, self.tokenizer, self.config, purpose)

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        real = (batch["segments_BL"] > 0).sum().astype(jnp.float32)
        return {"tokens": batch["weights_BM"].sum(), "real": real, "rows": batch["row_weights_B"].sum()}

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        x_BLD = encode(model, batch, batch["tokens_BL"], key)
        projection = model.predict_tokens(x_BLD, batch["mask_positions_BM"])
        loss, correct = token_loss(projection, batch["targets_BM"], batch["weights_BM"])
        sums = {"mlm_loss_nats": loss, "mlm_accuracy": correct}
        if self.label_smoothing:
            smooth = smoothing(projection, batch["targets_BM"], batch["weights_BM"])
            sums["smoothing_nats"] = self.label_smoothing * smooth
        if self.pair_name:
            logits_B2 = model.predict_next_sentence(x_BLD)
            log_probabilities_B2 = jax.nn.log_softmax(logits_B2)
            labels_B, weights_B = batch["next_sentence_B"], batch["row_weights_B"]
            chosen_B = jnp.take_along_axis(log_probabilities_B2, labels_B[:, None], axis=1)[:, 0]
            sums[f"{self.pair_name}_loss_nats"] = -(weights_B * chosen_B).sum()
            sums[f"{self.pair_name}_accuracy"] = (weights_B * (logits_B2.argmax(-1) == labels_B)).sum()
        return sums


def encode(model: Any, batch: Batch, tokens_BL: jax.Array, key: jax.Array | None) -> jax.Array:
    """Encode the rows of a `MaskedPairs` batch with `tokens_BL` as their tokens; returns hidden states [B, L, D]."""
    types_BL = batch["types_BL"] if model.arch.num_types > 1 else None  # RoBERTa has one type, for all segments
    return model.encoder(
        tokens_BL, batch["segments_BL"], positions_BL=batch.get("positions_BL"), types_BL=types_BL, dropout_key=key
    )

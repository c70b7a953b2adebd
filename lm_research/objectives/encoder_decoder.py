"""What all objectives of encoder-decoders share: rows of sources and targets, and the loss of the targets.

Legend: B batch, S source length, L target length, P examples of a batch, T tokens of all of them.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.config import Config, ObjectiveConfig, key
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys
from lm_research.data.store import TokenStore
from lm_research.models.heads import Projection
from lm_research.objectives.base import Batch, NextTokenObjective, TextObjective
from lm_research.objectives.packing import alone, describe_rows, pack, rows_of
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class SourceTargetConfig(ObjectiveConfig):
    """Settings of an objective with a source and a target.

    Attributes:
      usual_start: the role that decoder_start=auto is.
    """

    usual_start: ClassVar[str] = "pad"

    decoder_start: str = key(
        "auto",
        "Special token that starts the decoder's input; auto is eos for denoising and pad otherwise.",
        choices=("auto", "pad", "bos", "eos"),
    )


class RaggedTexts(NamedTuple):
    """Texts one after another: their tokens [T] and how many each has [P]."""

    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths


def start_role(config: Config) -> str:
    """The role of the token that a decoder begins a target with."""
    objective = SourceTargetConfig.of(config.objective)
    return objective.decoder_start if objective.decoder_start != "auto" else objective.usual_start


class SourceTargetExamples(Examples):
    """Rows of a source and a target (several pairs if packed), by number.

    Args:
      tokenizer, config, purpose: as Objective's.
      rooms: S and L.
      sizes: int [n, 2], at least the tokens that source and target of each example will have.
      start: the token that a decoder begins a target with; None is that of config.objective.decoder_start's role.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: Config,
        purpose: str,
        rooms: tuple[int, int],
        sizes: Any,
        start: int | None = None,
    ) -> None:
        self.store, self.config, self.purpose, self.rooms = store, config, purpose, rooms
        self.pad, self.eos = tokenizer.pad_id, tokenizer.eos_id
        self.start = tokenizer.role_id(start_role(config)) if start is None else start
        self.packed = config.data.packing
        if self.packed:
            # One number for both sides: of the larger share, so that neither overflows.
            scaled = np.ceil(np.maximum(sizes[:, 0] / rooms[0], sizes[:, 1] / rooms[1]) * max(rooms)).astype(np.int64)
            self.packs = pack(np.minimum(scaled, max(rooms)), max(rooms))
        else:
            self.packs = alone(len(sizes))
        self.num_examples = len(self.packs)
        sides = zip(("sources", "targets"), sizes.T, rooms, strict=True)
        self.notes = "; ".join(f"{side}: {describe_rows(size, room, self.packs)}" for side, size, room in sides)

    @abc.abstractmethod
    def make(self, epoch_P: np.ndarray, item_P: np.ndarray, keys_P: np.ndarray) -> tuple[RaggedTexts, RaggedTexts]:
        """Sources and targets of some examples; `keys` of their random streams. The end token is part of both."""

    def batch(
        self, epoch_B: np.ndarray, index_B: np.ndarray, width: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Make a batch of a source and a target.

        It has source_tokens, source_segments [B, S]; tokens, targets, segments [B, L] int32; weights [B, L] float32; of packed rows
        source_positions [B, S] and positions [B, L] too.

        `tokens` are what the decoder reads: the targets one place later, after the start token. `width` is S and L where they are
        less than there is room for.
        """
        row_P, item_P = rows_of(self.packs, index_B)
        epoch_P = epoch_B[row_P]
        keys_P = example_keys(self.config.seed, f"{self.purpose}/{self.config.objective.name}", epoch_P, item_P)
        sources, targets = self.make(epoch_P, item_P, keys_P)
        number_P = 1 + exclusive_cumsum(np.ones_like(row_P), row_P)
        rows, rooms, batch = len(index_B), width or self.rooms, {}
        for prefix, texts, room in (("source_", sources, rooms[0]), ("", targets, rooms[1])):
            column_P = exclusive_cumsum(texts.lengths, row_P)
            segments, positions = np.zeros((rows, room), np.int32), np.zeros((rows, room), np.int32)
            mark_pieces(segments, row_P, column_P, texts.lengths, number_P)
            batch[f"{prefix}segments_B{'S' if prefix else 'L'}"] = segments
            if self.packed:
                mark_pieces(positions, row_P, column_P, texts.lengths, None)
                batch[f"{prefix}positions_B{'S' if prefix else 'L'}"] = positions
            tokens = np.full((rows, room), self.pad, np.int32)
            copy_pieces(tokens, row_P, column_P, texts.tokens, texts.starts, texts.lengths)
            batch["source_tokens_BS" if prefix else "targets_BL"] = tokens
        targets_BL, real_BL = batch["targets_BL"], batch["segments_BL"] > 0
        tokens_BL = np.full_like(targets_BL, self.pad)
        tokens_BL[:, 1:] = np.where(real_BL[:, 1:], targets_BL[:, :-1], self.pad)
        tokens_BL[row_P, column_P] = self.start
        batch["targets_BL"] = np.where(real_BL, targets_BL, 0)
        return batch | {"tokens_BL": tokens_BL, "weights_BL": real_BL.astype(np.float32)}


class NextTokenOfTarget(NextTokenObjective):
    """Mean negative log-likelihood of the next token of the target, given the source."""

    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        real = (batch["segments_BL"] > 0).sum() + (batch["source_segments_BS"] > 0).sum()
        return {"tokens": batch["weights_BL"].sum(), "real": real.astype(jnp.float32)}

    def projection(self, model: Any, batch: Batch, key: jax.Array | None) -> Projection:
        source_key, target_key = (None, None) if key is None else jax.random.split(key)
        _, memory = model.encode(
            batch["source_tokens_BS"],
            batch["source_segments_BS"],
            positions_BL=batch.get("source_positions_BS"),
            dropout_key=source_key,
        )
        x_BLD = model.decoder(
            batch["tokens_BL"], batch["segments_BL"], batch.get("positions_BL"), dropout_key=target_key, memory=memory
        )
        return model.predict_tokens(x_BLD)


class SourceToTarget(TextObjective, NextTokenOfTarget):
    """An objective of encoder-decoders."""

    kinds = ("encoder-decoder",)

    @classmethod
    def head(cls, config: Config) -> str:
        return "seq2seq_lm"

    def start_token(self) -> int:
        return self.tokenizer.role_id(start_role(self.config))

"""The common part of encoder-decoder objectives: rows of sources and targets, and the loss of the targets.

Legend: B batch, S source length, L target length, P examples of a batch, T tokens of all of them.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research.config import Config, key
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys
from lm_research.data.store import TokenStore
from lm_research.models.heads import Projection
from lm_research.objectives.base import Batch, NextTokenObjective, SmoothedConfig, TextObjective, label_smoothing
from lm_research.objectives.packing import describe_rows, one_per_row, pack, unpack
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class SourceTargetConfig(SmoothedConfig):
    """Settings of an objective with a source and a target.

    Attributes:
      default_start: the role that decoder_start=auto selects.
    """

    default_start: ClassVar[str] = "pad"

    decoder_start: str = key(
        "auto",
        "Special token that starts the decoder's input; auto is eos for denoising and pad otherwise.",
        choices=("auto", "pad", "bos", "eos"),
    )


class RaggedTexts(NamedTuple):
    """Texts one after another: their tokens [T] and the length of each [P]."""

    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Offset of each text in `tokens`, [P]."""
        return np.cumsum(self.lengths) - self.lengths


def start_role(config: Config) -> str:
    """Return the role of the token that a decoder's targets begin with."""
    objective = SourceTargetConfig.of(config.objective)
    return objective.decoder_start if objective.decoder_start != "auto" else objective.default_start


def pair_sizes(sizes: np.ndarray, max_lengths: tuple[int, int]) -> np.ndarray:
    """Compute the part of a row that each pair takes, [n], of a row of max(max_lengths).

    It is that of the side that fills the larger fraction of its row, so that neither side overflows.
    """
    capacity = max(max_lengths)
    fraction = np.maximum(sizes[:, 0] / max_lengths[0], sizes[:, 1] / max_lengths[1])
    return np.minimum(np.ceil(fraction * capacity).astype(np.int64), capacity)


class SourceTargetExamples(Examples):
    """Rows of a source and a target (several pairs if packed), addressed by number.

    Args:
      store: the tokens.
      tokenizer: of the run.
      config: of the run.
      purpose: see Trainable.examples.
      max_lengths: S and L.
      sizes: int [n, 2], upper bounds of the lengths of each example's source and target.
      start: id of the token that a decoder's targets begin with; None takes the role config.objective.decoder_start.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: Config,
        purpose: str,
        max_lengths: tuple[int, int],
        sizes: Any,
        start: int | None = None,
    ) -> None:
        self.store, self.config, self.purpose, self.max_lengths = store, config, purpose, max_lengths
        self.pad, self.eos = tokenizer.pad_id, tokenizer.eos_id
        self.start = tokenizer.role_id(start_role(config)) if start is None else start
        self.packed = config.data.packing
        if self.packed:
            self.packs = pack(pair_sizes(sizes, max_lengths), max(max_lengths))
        else:
            self.packs = one_per_row(len(sizes))
        self.num_examples = len(self.packs)
        sides = zip(("sources", "targets"), sizes.T, max_lengths, strict=True)
        self.notes = "; ".join(f"{side}: {describe_rows(size, length, self.packs)}" for side, size, length in sides)

    @abc.abstractmethod
    def make(self, epoch_P: np.ndarray, item_P: np.ndarray, keys_P: np.ndarray) -> tuple[RaggedTexts, RaggedTexts]:
        """Make the sources and targets of some examples, with their end tokens.

        Args:
          epoch_P: epoch of each example.
          item_P: number of each example.
          keys_P: keys of their random streams.
        """

    def batch(
        self, epoch_B: np.ndarray, index_B: np.ndarray, width: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Make a batch of sources and targets.

        The decoder's input `tokens` is the targets shifted right by one, after the start token. Example with two packed pairs,
        a b -> x y and c -> z, end token $ and start token ^:

            source_tokens    a b $ c $      targets   x y $ z $
            source_segments  1 1 1 2 2      tokens    ^ x y ^ z
                                            segments  1 1 1 2 2

        Args:
          epoch_B: epoch of each row.
          index_B: number of each row; -1 gives an empty row.
          width: S and L, if they should be less than the maximum.

        Returns:
          source_tokens, source_segments [B, S]; tokens, targets, segments [B, L] int32; weights [B, L] float32; for packed rows
          also source_positions [B, S] and positions [B, L].
        """
        row_P, item_P = unpack(self.packs, index_B)
        return self.make_rows(len(index_B), row_P, epoch_B[row_P], item_P, width or self.max_lengths)

    def make_rows(
        self, rows: int, row_P: np.ndarray, epoch_P: np.ndarray, item_P: np.ndarray, width: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Make the rows of some examples, row after row, as `batch` does; `width` is S and L."""
        keys_P = example_keys(self.config.seed, f"{self.purpose}/{self.config.objective.name}", epoch_P, item_P)
        sources, targets = self.make(epoch_P, item_P, keys_P)
        number_P = 1 + exclusive_cumsum(np.ones_like(row_P), row_P)
        shapes, batch = [(rows, length) for length in width], {}
        for prefix, texts, shape in (("source_", sources, shapes[0]), ("", targets, shapes[1])):
            column_P = exclusive_cumsum(texts.lengths, row_P)
            segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            mark_pieces(segments, row_P, column_P, texts.lengths, number_P)
            batch[f"{prefix}segments_B{'S' if prefix else 'L'}"] = segments
            if self.packed:
                mark_pieces(positions, row_P, column_P, texts.lengths, None)
                batch[f"{prefix}positions_B{'S' if prefix else 'L'}"] = positions
            tokens = np.full(shape, self.pad, np.int32)
            copy_pieces(tokens, row_P, column_P, texts.tokens, texts.starts, texts.lengths)
            batch["source_tokens_BS" if prefix else "targets_BL"] = tokens
        targets_BL, real_BL = batch["targets_BL"], batch["segments_BL"] > 0
        tokens_BL = np.full_like(targets_BL, self.pad)
        tokens_BL[:, 1:] = np.where(real_BL[:, 1:], targets_BL[:, :-1], self.pad)
        tokens_BL[row_P, column_P] = self.start  # column_P of the targets
        batch["targets_BL"] = np.where(real_BL, targets_BL, 0)
        return batch | {"tokens_BL": tokens_BL, "weights_BL": real_BL.astype(np.float32)}


class NextTokenOfTarget(NextTokenObjective):
    """Mean negative log-likelihood of the next token of the target, given the source."""

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        real = (batch["segments_BL"] > 0).sum() + (batch["source_segments_BS"] > 0).sum()
        return {"tokens": batch["weights_BL"].sum(), "real": real.astype(jnp.float32)}

    @override
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
    """An objective that trains encoder-decoders."""

    kinds = ("encoder-decoder",)

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        NextTokenOfTarget.__init__(self, label_smoothing(config))
        super().__init__(config, tokenizer)

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "seq2seq_lm"

    @override
    def start_token(self) -> int:
        return self.tokenizer.role_id(start_role(self.config))

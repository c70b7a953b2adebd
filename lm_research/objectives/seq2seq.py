"""Sequence-to-sequence learning (Sutskever et al. 2014): the target text given the source text.

Pairs come from parallel_corpus.py. A text longer than its row is cut at the end; both sides end with the end token.

Legend: P pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from typing_extensions import override

from lm_research.config import Config, key
from lm_research.data.corpus import LOCAL_RUNNER, Bars, Corpus, Log, no_bar
from lm_research.data.store import TokenStore
from lm_research.data.workers import Runner
from lm_research.errors import ConfigError, DataError
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import OBJECTIVES
from lm_research.objectives.encoder_decoder import RaggedTexts, SourceTargetConfig, SourceTargetExamples, SourceToTarget
from lm_research.objectives.parallel_corpus import PairCorpusConfig, open_pairs
from lm_research.objectives.ragged import copy_pieces
from lm_research.tokenizers.base import Frame, Tokenizer


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(PairCorpusConfig, SourceTargetConfig):
    """Settings of objective.name=seq2seq."""

    target_length: int | None = key(
        None,
        "Maximum target length in tokens; None uses data.max_length. For task.name=instruction it limits "
        "generated answers, and None uses half of data.max_length.",
        low=0,
        high=2**24,
    )


def max_lengths(config: Config) -> tuple[int, int]:
    """Return the maximum lengths of sources and targets, in tokens."""
    return config.data.max_length, Seq2SeqConfig.of(config.objective).target_length or config.data.max_length


class TextPairs(SourceTargetExamples):
    """Pairs of a store whose documents have two sentences, addressed by number.

    Args:
      store: the tokens.
      tokenizer: of the run.
      config: of the run.
      purpose: see Trainable.examples.
      frames: special tokens around sources and around targets; None ends both with the end token.
      start: see SourceTargetExamples.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: Config,
        purpose: str,
        frames: tuple[Frame, Frame] | None = None,
        start: int | None = None,
    ) -> None:
        sentences = np.asarray(store.document_starts)
        wrong = np.flatnonzero(np.diff(sentences) != 2)
        if len(wrong):
            count = int(sentences[wrong[0] + 1] - sentences[wrong[0]])
            raise DataError(
                f"{store.path} is not a store of pairs: its document {wrong[0]} has {count} sentences instead of a source and a "
                "target. Set config.data.source to records with two fields; objective.name=seq2seq cannot train on plain text."
            )
        starts = np.asarray(store.sentence_starts)
        self.starts = starts[:-1].reshape(-1, 2)
        whole = np.diff(starts).reshape(-1, 2)
        self.frames = frames or (Frame((), (tokenizer.eos_id,)),) * 2
        num_special = np.array([frame.size for frame in self.frames])
        self.lengths = np.minimum(whole, np.array(max_lengths(config)) - num_special)
        super().__init__(store, tokenizer, config, purpose, max_lengths(config), self.lengths + num_special, start)
        self.notes += f"; {(whole - self.lengths).sum() / whole.sum():.1%} of tokens cut off"

    @override
    def make(self, epoch_P: np.ndarray, item_P: np.ndarray, keys_P: np.ndarray) -> tuple[RaggedTexts, RaggedTexts]:
        sides = []
        for side, frame in enumerate(self.frames):
            lengths_P = self.lengths[item_P, side]
            texts = RaggedTexts(np.empty(int((lengths_P + frame.size).sum()), np.int32), lengths_P + frame.size)
            at_P = texts.starts + len(frame.head)
            for place_P, ids in ((texts.starts, frame.head), (at_P + lengths_P, frame.tail)):
                texts.tokens[place_P[:, None] + np.arange(len(ids))] = ids
            copy_pieces(
                texts.tokens[None], np.zeros_like(at_P), at_P, self.store.tokens, self.starts[item_P, side], lengths_P
            )
            sides.append(texts)
        return sides[0], sides[1]


@OBJECTIVES.register("seq2seq", Seq2SeqConfig)
class SequenceToSequence(SourceToTarget):
    """Generate the target text of each source text."""

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        length = Seq2SeqConfig.of(config.objective).target_length
        if arch.max_length and length and length > arch.max_length:
            raise ConfigError(
                f"objective.target_length={length} is longer than model.max_length={arch.max_length}, the number of positions of the "
                f"model. Shorten the targets or set --config.model.max_length={length}."
            )

    @classmethod
    @override
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = LOCAL_RUNNER, bars: Bars = no_bar
    ) -> Corpus:
        return open_pairs(config, workdir, log)

    def target_counts(self, store: TokenStore) -> np.ndarray:
        """Count the ids of the targets only."""
        starts = np.asarray(store.sentence_starts)
        target_S = np.arange(len(starts) - 1) % 2 == 1
        tokens = store.tokens[np.repeat(target_S, np.diff(starts))]
        return np.bincount(tokens, minlength=len(store.token_counts))

    @override
    def examples(self, store: TokenStore, purpose: str) -> TextPairs:
        return TextPairs(store, self.tokenizer, self.config, purpose)

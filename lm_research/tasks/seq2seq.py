"""Writing a target for a source: translation, summarization, or anything else as text to text (Raffel et al. 2020).

Encoder-decoders learn the target's tokens given the source, as in objectives/seq2seq.py, whose rows and loss these are. Sources are
read with the special tokens that the model's tokenizer puts around a text, after task.source_prefix if there is one; targets end with the
end token. Where a tokenizer marks texts with their language, each side has its own (task.source_language, task.target_language). Texts that are too long for data.max_length and objective.target_length are cut at the end; the log counts them.

Held-out sources are decoded as task.predict_with_generate says and scored by metrics/texts.py.

Legend: B batch, S source length, L target length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research import config as config_lib
from lm_research.config import Config, key
from lm_research.data.store import TokenStore
from lm_research.decoding.jit_generate import plain_prompts
from lm_research.decoding.prompts import Prompts
from lm_research.errors import ConfigError, DataError, TokenizerError
from lm_research.metrics import texts
from lm_research.models.architecture import Architecture
from lm_research.models.families import family_of
from lm_research.objectives.base import Batch
from lm_research.objectives.encoder_decoder import NextTokenOfTarget, SourceTargetConfig
from lm_research.objectives.seq2seq import Seq2SeqConfig as PairsConfig
from lm_research.objectives.seq2seq import SequenceToSequence, TextPairs, max_lengths
from lm_research.tasks.base import TASKS
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row
from lm_research.tasks.generation import GenerationConfig, GenerationTask, origin_settings
from lm_research.tasks.padding import rounded
from lm_research.tasks.records import Record
from lm_research.tokenizers.base import Tokenizer

_LEAST = 8  # tokens of a row, of which some are special
_PIPELINES = ("text2text-generation", "summarization", "translation")


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(GenerationConfig):
    not_reading = GenerationConfig.not_reading | {
        "decoder_start",
        "source_language",
        "target_language",
        "bleu_tokenizer",
        "rouge_tokenizer",
    }

    source_prefix: str = key("", "Text to prepend to each source, such as 'summarize: '; spaces count.")
    decoder_start: str | None = key(
        None,
        "Token that starts the decoder's input; None uses the model's own, or else objective.decoder_start.",
    )
    source_language: str | None = key(
        None,
        "Language code of the sources, such as en_XX, for tokenizers with language tokens (mBART, NLLB, M2M-100); "
        "None uses src_lang of the tokenizer's files.",
    )
    target_language: str | None = key(
        None,
        "Language code of the targets, such as ro_RO; None uses tgt_lang of the tokenizer's files, or the "
        "language that the model's files make it generate.",
    )
    bleu_tokenizer: str = key(
        "13a",
        "sacrebleu's tokenizer for BLEU: 13a for languages with spaces, zh for Chinese, ja-mecab for Japanese, ko-mecab for "
        "Korean, char for single characters.",
        choices=("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
    )
    rouge_tokenizer: str = key(
        "auto",
        "Units that ROUGE counts: rouge_score uses that package's tokens (only a to z and digits); auto also uses "
        "words of other scripts, and characters of scripts without spaces (Chinese, Japanese, Thai); character "
        "uses characters; whitespace splits at spaces, for texts that are already segmented.",
        choices=("auto", "character", "whitespace", "rouge_score"),
    )


class PairReader(Reader):
    """Reads task.text_key (the source) and label_key (the target)."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, Seq2SeqConfig.of(config.task)

    def pair(self, record: Record) -> tuple[str, str]:
        """Source, without a prefix, and target; raises a DataError where one is missing."""
        task = self.task
        pair = record.text(task.text_key, "text_key"), record.text(task.label_key, "label_key")
        for text, side, field in zip(pair, ("source", "target"), (task.text_key, task.label_key), strict=True):
            if not text.strip():
                raise DataError(
                    f"{record.where} has an empty {side} (field {field!r}): nothing can be learned from it. Leave the record out, or let "
                    "--config.data.on_error=skip do that."
                )
        return pair

    def is_valid(self, record: Record) -> bool:
        task = self.task
        return bool(record.text(task.text_key, "text_key").strip() and record.text(task.label_key, "label_key").strip())

    def prepare(self, tokenizer: Tokenizer) -> Tokenizer:
        """With the languages of the task: those that its keys, the tokenizer's files or those of the model name.

        Raises:
          ConfigError: the tokenizer has no such language, or nothing tells what is written.
        """
        task, languages = self.task, tokenizer.languages
        start = language_named(tokenizer, task.decoder_start)
        if start and task.target_language not in (None, start):
            raise ConfigError(
                f"config.task.decoder_start={task.decoder_start!r} and config.task.target_language={task.target_language!r} are two "
                "languages. Leave out the first."
            )
        target = task.target_language or start
        if languages is not None and not (target or languages.target):
            target = languages.language_of(origin_settings(self.config.train.init_from))
            if not target:
                raise ConfigError(
                    f"{tokenizer.name} marks texts with their language, and no file says which one is to be written. Name it in "
                    f"config.task.target_language, and that of sources ({languages.source}) in config.task.source_language. "
                    f"Valid: {', '.join(languages.ids)}."
                )
        try:
            return tokenizer.in_languages(task.source_language or "", target or "")
        except TokenizerError as error:
            keys = f"source_language={task.source_language!r}, config.task.target_language={target!r}"
            raise ConfigError(f"config.task.{keys}: {error}") from error

    def texts(self, record: Record) -> list[str]:
        source, target = self.pair(record)
        return [self.task.source_prefix + source, target]

    def metadata(self, record: Record) -> dict[str, Any]:
        source, target = self.pair(record)
        return {"source": source, "target": target}

    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        """Both sides whole and without special tokens; one that the tokenizer makes nothing of is its unknown token."""
        sources, targets = zip(*map(self.texts, records), strict=True)
        sides = tokenizer.encode_batch(sources), tokenizer.encode_targets(targets)
        for source, target in zip(*sides, strict=True):
            source, target = source or [tokenizer.unk_id], target or [tokenizer.unk_id]
            yield Row(np.array(source + target, np.int32), 0, 0, cuts=(len(source),))

    def summarize_lengths(self, rows: Sequence[Row], tokenizer: Tokenizer) -> str:
        room = [size - frame.size for size, frame in zip(max_lengths(self.config), frames(tokenizer), strict=True)]
        cut = [sum(len(row.parts[side]) > room[side] for row in rows) for side in (0, 1)]
        lengths = max_lengths(self.config)
        return f"{cut[0]:,} sources cut to {lengths[0]} tokens, {cut[1]:,} targets to {lengths[1]}"


def language_named(tokenizer: Tokenizer, name: str | None) -> str:
    """The language of a code, or of a token that stands for it; "" if it is none."""
    languages = tokenizer.languages
    if not name or languages is None:
        return ""
    if name in languages.ids:
        return name
    return languages.code_of(tokenizer.token_id(name))


def frames(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """What stands around sources and around targets."""
    return tokenizer.frame, tokenizer.target_frame


class TaskPairs(TextPairs):
    """Pairs of a part of a data set, in rows as long as the longest of a batch needs, rounded up."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: Config,
        purpose: str,
        start: int,
        first: int,
        decoded: bool,
    ) -> None:
        """`first`: the number of the first record; `decoded`: whether batches ask for texts to be written."""
        if purpose != "train":  # what is decoded is one text a row
            config = config_lib.replace(config, data={"packing": False})
        super().__init__(store, tokenizer, config, purpose, frames(tokenizer), start)
        self.first, self.decoded = first, decoded
        self.sizes = self.lengths + [frame.size for frame in self.frames]

    def example_lengths(self) -> np.ndarray | None:
        """Of source and target together, [N]; None where rows hold several pairs."""
        return None if self.packed else self.sizes.sum(1)

    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch(epoch_B, index_B, self.width(index_G))

    def width(self, index_B: np.ndarray) -> tuple[int, int]:
        """S and L of a global batch."""
        if self.packed:
            return self.max_lengths
        longest = self.sizes[np.maximum(index_B, 0)].max(0, initial=1)
        source, target = (min(room, rounded(int(size))) for room, size in zip(self.max_lengths, longest, strict=True))
        return source, target

    def batch(
        self, epoch_B: np.ndarray, index_B: np.ndarray, width: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """As TextPairs'; row_weights [B] float32 and record [B] int32, and decoded [B] where texts are to be written."""
        batch = super().batch(epoch_B, index_B, width)
        batch |= {
            "row_weights_B": (index_B >= 0).astype(np.float32),
            "record_B": (self.first + np.maximum(index_B, 0)).astype(np.int32),
        }
        return batch | ({"decoded_B": batch["row_weights_B"]} if self.decoded else {})


@TASKS.register("seq2seq", Seq2SeqConfig)
class Seq2Seq(GenerationTask):
    """Mean loss over target tokens; scores of what is written for held-out sources."""

    kinds = ("encoder-decoder",)
    metric_names = texts.NAMES
    settings: Seq2SeqConfig

    @classmethod
    def head(cls, config: Config) -> str:
        return "seq2seq_lm"

    @classmethod
    def reader(cls, config: Config) -> PairReader:
        return PairReader(config)

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        SequenceToSequence.check(config, arch)
        if min(max_lengths(config)) < _LEAST:
            raise ConfigError(
                f"objective.target_length={PairsConfig.of(config.objective).target_length} leaves targets hardly any room beside special tokens. Use "
                f"{_LEAST} or more."
            )
        task = Seq2SeqConfig.of(config.task)
        if task.predict_with_generate != "never":
            texts.check_installed(task.bleu_tokenizer)

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.settings = Seq2SeqConfig.of(config.task)
        super().__init__(config, corpus)
        languages = self.tokenizer.languages
        opening: dict[str, Any] = dict(languages.generation_options(languages.target_or_source)) if languages else {}
        self.start = self._start(opening.get("decoder_start_token_id"))
        self.options = dataclasses.replace(self.options, **opening | {"decoder_start_token_id": self.start})

    def make_objective(self) -> NextTokenOfTarget:
        return NextTokenOfTarget(self.settings.label_smoothing)

    @property
    def most(self) -> int:
        return max_lengths(self.config)[1]

    def _start(self, language: int | None) -> int:
        """The token that targets begin with.

        It follows task.decoder_start; else it is their language where decoders begin with it, what the files of the model give, or the
        objective's rule.
        """
        token, known = self.settings.decoder_start, self.origin.get("decoder_start_token_id")
        around = self.origin and family_of(self.origin["family"]).starts_with_last_token
        if token and not language_named(self.tokenizer, token):
            number = self.tokenizer.token_id(token)
            if number is None:
                raise ConfigError(
                    f"config.task.decoder_start={token!r} is no token of {self.tokenizer.name}. Name one of its vocabulary."
                )
            return number
        role = SourceTargetConfig.of(self.config.objective).decoder_start
        if role == "auto" and language is not None:
            return language
        if role == "auto" and around and self.tokenizer.languages is not None:
            return self.tokenizer.target_frame.tail[-1]
        if role == "auto" and "start_role" in self.origin:
            return self.tokenizer.role_id(self.origin["start_role"])
        if role == "auto" and known is not None:
            return int(known)
        if around:
            raise ConfigError(
                f"{self.config.train.init_from} begins texts with the token of their language, and its files do not say which. Name it, "
                "for example --config.task.decoder_start=ro_RO."
            )
        return self.tokenizer.role_id("pad" if role == "auto" else role)

    def examples(self, store: TokenStore, purpose: str) -> TaskPairs:
        first = self.corpus.first_of(self.corpus.part_of(store))
        return TaskPairs(store, self.tokenizer, self.config, purpose, self.start, first, self.decodes(purpose))

    def prompts(self, batch: Batch) -> Prompts[jax.Array]:
        real_B = batch["decoded_B"] > 0
        start_B1 = jnp.full((len(real_B), 1), self.start, jnp.int32)
        mask_BS = (batch["source_segments_BS"] > 0).astype(jnp.int32)
        return plain_prompts(start_B1, jnp.zeros(len(real_B), jnp.int32), real_B, batch["source_tokens_BS"], mask_BS)

    def metric_options(self) -> dict[str, str]:
        return {"bleu_tokenizer": self.settings.bleu_tokenizer, "rouge_tokenizer": self.settings.rouge_tokenizer}

    def texts_of(self, kept: dict[str, Any]) -> dict[str, str]:
        return {"source": kept["source"], "target": kept["target"]}

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The prefix, where pipelines look for it; other tasks of the model it came from are forgotten."""
        prefix = {"prefix": self.settings.source_prefix}
        config = super().update_hf_config(config) | {"decoder_start_token_id": self.start}
        return {**config, "task_specific_params": {name: prefix for name in _PIPELINES}}

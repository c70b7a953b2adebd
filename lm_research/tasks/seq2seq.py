"""Generating a target from a source: translation, summarization, or any other text-to-text task (Raffel et al. 2020).

Encoder-decoders learn the target's tokens given the source, with the rows and the loss of objectives/seq2seq.py. Sources start with
task.source_prefix, if set, and get the special tokens that the model's tokenizer puts around a text; targets end with the end token. If
the tokenizer marks texts with their language, each side has its own (task.source_language, task.target_language). Texts longer than
data.max_length and objective.target_length are cut at the end; the log counts them.

task.predict_with_generate sets when held-out sources are decoded; metrics/texts.py scores the texts.

Legend: B batch, S source length, L target length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import config as config_lib
from lm_research.common.rounding import padded_length
from lm_research.config import Config, key
from lm_research.data.store import TokenStore
from lm_research.decoding.jit_generate import plain_prompts
from lm_research.decoding.prompts import Prompts
from lm_research.errors import ConfigError, DataError, TokenizerError
from lm_research.metrics import texts
from lm_research.models.architecture import Architecture
from lm_research.models.families import family_of
from lm_research.objectives.base import Batch
from lm_research.objectives.encoder_decoder import NextTokenOfTarget, SourceTargetConfig, pair_sizes
from lm_research.objectives.seq2seq import Seq2SeqConfig as PairsConfig
from lm_research.objectives.seq2seq import SequenceToSequence, TextPairs, max_lengths
from lm_research.tasks.base import TASKS
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row
from lm_research.tasks.generation import GenerationConfig, GenerationTask, read_init_settings
from lm_research.tasks.records import Record
from lm_research.tasks.rows import SharedRows, slots_of
from lm_research.tokenizers.base import Tokenizer

_MIN_TOKENS = 8  # the smallest length of a row, special tokens included
_PIPELINES = ("text2text-generation", "summarization", "translation")


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(GenerationConfig):
    """Settings of seq2seq."""

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
        """Return source, without the prefix, and target; raise a DataError if one is missing."""
        task = self.task
        pair = record.text(task.text_key, "text_key"), record.text(task.label_key, "label_key")
        for text, side, field in zip(pair, ("source", "target"), (task.text_key, task.label_key), strict=True):
            if not text.strip():
                raise DataError(
                    f"{record.where} has an empty {side} (field {field!r}): nothing can be learned from it. Leave the record out, or let "
                    "--config.data.on_error=skip do that."
                )
        return pair

    @override
    def is_valid(self, record: Record) -> bool:
        task = self.task
        return bool(record.text(task.text_key, "text_key").strip() and record.text(task.label_key, "label_key").strip())

    def prepare(self, tokenizer: Tokenizer) -> Tokenizer:
        """Set the languages of the task, from its keys, the tokenizer's files or the model's.

        Raises:
          ConfigError: the tokenizer lacks a language, or none of these names the target's.
        """
        task, languages = self.task, tokenizer.languages
        start = find_language(tokenizer, task.decoder_start)
        if start and task.target_language not in (None, start):
            raise ConfigError(
                f"config.task.decoder_start={task.decoder_start!r} and config.task.target_language={task.target_language!r} are two "
                "languages. Leave out the first."
            )
        target = task.target_language or start
        if languages is not None and not (target or languages.target):
            target = languages.language_of(read_init_settings(self.config.train.init_from))
            if not target:
                raise ConfigError(
                    f"{tokenizer.name} marks texts with their language, and no file names the language of targets. Set it in "
                    f"config.task.target_language, and that of sources ({languages.source}) in config.task.source_language. "
                    f"Valid: {', '.join(languages.ids)}."
                )
        try:
            return tokenizer.in_languages(task.source_language or "", target or "")
        except TokenizerError as error:
            keys = f"source_language={task.source_language!r}, config.task.target_language={target!r}"
            raise ConfigError(f"config.task.{keys}: {error}") from error

    @override
    def texts(self, record: Record) -> list[str]:
        source, target = self.pair(record)
        return [self.task.source_prefix + source, target]

    @override
    def metadata(self, record: Record) -> dict[str, Any]:
        source, target = self.pair(record)
        return {"source": source, "target": target}

    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        """Encode both sides uncut and without special tokens; a side without any tokens becomes the unknown token."""
        sources, targets = zip(*map(self.texts, records), strict=True)
        sides = tokenizer.encode_batch(sources), tokenizer.encode_targets(targets)
        for source, target in zip(*sides, strict=True):
            source, target = source or [tokenizer.unk_id], target or [tokenizer.unk_id]
            yield Row(np.array(source + target, np.int32), 0, 0, cuts=(len(source),))

    @override
    def summarize_lengths(self, rows: Sequence[Row], tokenizer: Tokenizer) -> str:
        lengths = max_lengths(self.config)
        longest = [length - frame.size for length, frame in zip(lengths, frames(tokenizer), strict=True)]
        cut = [sum(len(row.parts[side]) > longest[side] for row in rows) for side in (0, 1)]
        return f"{cut[0]:,} sources cut to {lengths[0]} tokens, {cut[1]:,} targets to {lengths[1]}"


def find_language(tokenizer: Tokenizer, name: str | None) -> str:
    """Find the language code of a code or of a language token; "" for any other name."""
    languages = tokenizer.languages
    if not name or languages is None:
        return ""
    if name in languages.ids:
        return name
    return languages.code_of(tokenizer.token_id(name))


def frames(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Return the special tokens around sources and around targets."""
    return tokenizer.frame, tokenizer.target_frame


class TaskPairs(TextPairs):
    """Pairs of a part of a data set, in rows as long as the longest of a batch, rounded up."""

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
        """Set up rows; `first` is the number of the first record, `decoded` whether batches request decoding."""
        config = config_lib.replace(config, data={"packing": False})
        super().__init__(store, tokenizer, config, purpose, frames(tokenizer), start)
        self.first, self.decoded = first, decoded
        self.side_sizes = self.lengths + [frame.size for frame in self.frames]

    @override
    def example_lengths(self) -> np.ndarray | None:
        """Return the lengths of source and target together [N]."""
        return self.side_sizes.sum(1)

    @override
    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch(epoch_B, index_B, self.width(index_G))

    def width(self, index_B: np.ndarray) -> tuple[int, int]:
        """Compute S and L of a global batch."""
        longest = self.side_sizes[np.maximum(index_B, 0)].max(0, initial=1)
        source, target = (
            min(limit, padded_length(int(size))) for limit, size in zip(self.max_lengths, longest, strict=True)
        )
        return source, target

    def batch(
        self, epoch_B: np.ndarray, index_B: np.ndarray, width: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Make a batch like TextPairs, with row_weights [B] float32, record [B] int32 and, if records are decoded, decoded [B]."""
        batch = super().batch(epoch_B, index_B, width)
        batch |= {
            "row_weights_B": (index_B >= 0).astype(np.float32),
            "record_B": (self.first + np.maximum(index_B, 0)).astype(np.int32),
        }
        return batch | ({"decoded_B": batch["row_weights_B"]} if self.decoded else {})


class SharedPairs(SharedRows, TaskPairs):
    """Pairs that share rows, whose sides are as long as the longest, rounded up."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, start: int) -> None:
        super().__init__(store, tokenizer, config, "train", start, first=0, decoded=False)
        self.max_lengths, self.packed = self.width(np.arange(self.num_examples)), True
        self.sizes, self.capacity = pair_sizes(self.side_sizes, self.max_lengths), max(self.max_lengths)
        self.notes = f"pairs share rows of {self.max_lengths[0]} + {self.max_lengths[1]} tokens"

    @override
    def example_lengths(self) -> None:
        return None  # all rows are equally long

    @override
    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch like TextPairs."""
        row_P, _, item_P = slots_of(index_BK)
        return self.make_rows(len(index_BK), row_P, np.zeros_like(item_P), item_P, self.max_lengths)


@TASKS.register("seq2seq", Seq2SeqConfig)
class Seq2Seq(GenerationTask):
    """Targets generated from sources: mean loss over target tokens, scores of decoded targets."""

    kinds = ("encoder-decoder",)
    metric_names = texts.NAMES
    settings: Seq2SeqConfig

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "seq2seq_lm"

    @classmethod
    @override
    def reader(cls, config: Config) -> PairReader:
        return PairReader(config)

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        SequenceToSequence.check(config, arch)
        if min(max_lengths(config)) < _MIN_TOKENS:
            raise ConfigError(
                f"objective.target_length={PairsConfig.of(config.objective).target_length} leaves targets hardly any space next to special "
                f"tokens. Use {_MIN_TOKENS} or more."
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

    @override
    def make_objective(self) -> NextTokenOfTarget:
        return NextTokenOfTarget(self.settings.label_smoothing)

    @property
    @override
    def max_new_tokens(self) -> int:
        return max_lengths(self.config)[1]

    def _start(self, language: int | None) -> int:
        """Choose the token that targets begin with.

        The first of these that applies: task.decoder_start, the language's token if decoders begin with it, the token in the model's
        files, the objective's rule.
        """
        token, init_start = self.settings.decoder_start, self.init_settings.get("decoder_start_token_id")
        starts_with_last = self.init_settings and family_of(self.init_settings["family"]).starts_with_last_token
        if token and not find_language(self.tokenizer, token):
            number = self.tokenizer.token_id(token)
            if number is None:
                raise ConfigError(
                    f"config.task.decoder_start={token!r} is not a token of {self.tokenizer.name}. Name one of its vocabulary."
                )
            return number
        role = SourceTargetConfig.of(self.config.objective).decoder_start
        if role == "auto" and language is not None:
            return language
        if role == "auto" and starts_with_last and self.tokenizer.languages is not None:
            return self.tokenizer.target_frame.tail[-1]
        if role == "auto" and "start_role" in self.init_settings:
            return self.tokenizer.role_id(self.init_settings["start_role"])
        if role == "auto" and init_start is not None:
            return int(init_start)
        if starts_with_last:
            raise ConfigError(
                f"{self.config.train.init_from} begins texts with the token of their language, which its files do not name. Set it, "
                "for example --config.task.decoder_start=ro_RO."
            )
        return self.tokenizer.role_id("pad" if role == "auto" else role)

    @override
    def examples(self, store: TokenStore, purpose: str) -> TaskPairs:
        if self.config.data.packing and purpose == "train":  # decoding reads one text a row
            return SharedPairs(store, self.tokenizer, self.config, self.start)
        first = self.corpus.first_row_number(self.corpus.part_of(store))
        return TaskPairs(store, self.tokenizer, self.config, purpose, self.start, first, self.should_generate(purpose))

    @override
    def prompts(self, batch: Batch) -> Prompts[jax.Array]:
        real_B = batch["decoded_B"] > 0
        start_B1 = jnp.full((len(real_B), 1), self.start, jnp.int32)
        mask_BS = (batch["source_segments_BS"] > 0).astype(jnp.int32)
        return plain_prompts(start_B1, jnp.zeros(len(real_B), jnp.int32), real_B, batch["source_tokens_BS"], mask_BS)

    @override
    def metric_options(self) -> dict[str, str]:
        return {"bleu_tokenizer": self.settings.bleu_tokenizer, "rouge_tokenizer": self.settings.rouge_tokenizer}

    @override
    def record_texts(self, metadata: dict[str, Any]) -> dict[str, str]:
        return {"source": metadata["source"], "target": metadata["target"]}

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Add the prefix, where Hugging Face pipelines read it; it replaces the initial model's task_specific_params."""
        prefix = {"prefix": self.settings.source_prefix}
        config = super().update_hf_config(config) | {"decoder_start_token_id": self.start}
        return {**config, "task_specific_params": {name: prefix for name in _PIPELINES}}

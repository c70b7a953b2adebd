"""Parallel corpora: pairs of a source text and a target text, for sequence-to-sequence models.

Pairs come from two text files with parallel lines (lines:SOURCES,TARGETS), or from one set of records (JSON lines, CSV, TSV, Parquet,
ArrayRecord or TFDS) with two fields. They are stored as documents
of two sentences, the source and the target. A corpus is built once and found again by a digest of its ingredients.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from lm_research.common.disk import atomic_folder
from lm_research.config import Config, DataConfig, ObjectiveConfig, key
from lm_research.data import remote_cache, stateless_rng, store
from lm_research.data.corpus import Corpus, read_corpus
from lm_research.data.sources import aligned, fingerprint, read_documents
from lm_research.data.sources.files import find_files
from lm_research.data.sources.problems import Problems
from lm_research.errors import ConfigError, DataError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.tokenizer_training import make_tokenizer, tokenizer_key

Pair = tuple[str, str]
FORMAT = 2  # of the folder and of everything that decides its content
_BATCH_PAIRS = 5_000  # tokenized in one call


@dataclasses.dataclass(frozen=True)
class PairCorpusConfig(ObjectiveConfig):
    """Names of the fields of a parallel corpus."""

    source_key: str = key("source", "Field of the source text.")
    target_key: str = key("target", "Field of the target text.")


def open_pairs(config: Config, workdir: pathlib.Path, log: Callable[[str], None]) -> Corpus:
    """Open the pairs of a run, building the corpus if necessary. Pairs with an empty side are left out and counted.

    Args:
      config: `data.source` and `data.validation_source` name the records, `objective.source_key` and `target_key` the
        fields. The sections data and tokenizer apply, except mixtures and cleaning.
      workdir: the run's folder; the corpus is in its subfolder data/ unless config.data.cache_dir names a folder.
      log: called with one line per step.

    Raises:
      ConfigError: config.data.mixture is set.
      DataError: the records are missing, unreadable, or too few.
      TokenizerError: the tokenizer cannot be trained or loaded.
    """
    if config.data.mixture:
        raise ConfigError(
            "config.data.mixture mixes plain texts, but objective.name=seq2seq needs pairs. Put all pairs into one folder and "
            "set config.data.source to it."
        )

    def build(folder: pathlib.Path) -> None:
        with atomic_folder(folder) as temporary:
            _build(config, temporary, log)

    folder = remote_cache.find_or_build(config.data.cache_dir, workdir, _key(config), build)
    corpus = read_corpus(folder)
    log(
        f"Pairs at {folder}: {corpus.train.num_documents:,} to train on, {corpus.validation.num_documents:,} held out, "
        f"{corpus.train.num_tokens:,} training tokens, vocabulary {corpus.tokenizer.size:,}."
    )
    return corpus


def _key(config: Config) -> str:
    data, objective = config.data, PairCorpusConfig.of(config.objective)

    def facts_of(source: str) -> object:
        return aligned.fingerprint(source) if aligned.is_aligned(source) else fingerprint(source, data)

    held_out = facts_of(data.validation_source) if data.validation_source else data.validation_fraction
    vocabulary = tokenizer_key(config.tokenizer, "keep_newlines", "sentinels")
    facts = [FORMAT, "pairs", facts_of(data.source), held_out, vocabulary]
    facts += [objective.source_key, objective.target_key]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def read_pairs(source: str, config: Config) -> Iterator[Pair]:
    """Read the two fields of each record; raises a DataError if a record cannot be read or has only one text."""
    if aligned.is_aligned(source):
        problems = Problems("stop")
        return ((pair.source, pair.target) for pair in aligned.read_line_pairs(source, problems))
    if source.startswith("package:") or (
        not source.startswith("tfds:") and any(file.kind == "text" for file in find_files(source))
    ):
        raise DataError(
            f"objective.name=seq2seq needs pairs, but {source} contains plain text. Use records with two fields: .jsonl, .csv, "
            ".tsv, .parquet or .array_record files, or tfds:NAME, and name the fields in config.objective.source_key and "
            "target_key. Two text files whose lines belong together are lines:SOURCES,TARGETS."
        )
    # Each side is read separately. Both stay aligned because an unreadable record raises an error.
    objective = PairCorpusConfig.of(config.objective)
    both: list[DataConfig] = [
        dataclasses.replace(config.data, text_key=key, on_error="error")
        for key in (objective.source_key, objective.target_key)
    ]
    return zip(*(read_documents(source, data) for data in both), strict=True)


def _build(config: Config, folder: pathlib.Path, log: Callable[[str], None]) -> None:
    keep = np.array(list(_is_complete(config.data.source, config)), bool)
    log(f"Read {config.data.source}: {len(keep):,} pairs, of which {np.count_nonzero(~keep):,} have an empty side.")
    held = np.zeros(len(keep), bool)
    if not config.data.validation_source:
        numbers = np.flatnonzero(keep)
        if len(numbers) < 2:
            raise DataError(
                f"{config.data.source} has too few pairs: {len(numbers)} with text on both sides, so none can be held out for validation. "
                "Add pairs, or set config.data.validation_source."
            )
        draws = stateless_rng.uniform_draw(stateless_rng.example_keys(0, "validation", 0, numbers))
        chosen = draws < config.data.validation_fraction
        chosen[draws.argmin()], chosen[draws.argmax()] = True, False
        held[numbers[chosen]] = True

    def train() -> Iterator[Pair]:
        return _select(config.data.source, config, keep & ~held)

    tokenizer = make_tokenizer((text for pair in train() for text in pair), config.tokenizer, folder, log)
    if config.data.validation_source:
        complete = np.array(list(_is_complete(config.data.validation_source, config)), bool)
        validation = _select(config.data.validation_source, config, complete)
    else:
        validation = _select(config.data.source, config, held)
    for part, pairs in (("train", train()), ("validation", validation)):
        store.write_store(folder / part, _encode(pairs, tokenizer), tokenizer.digest, tokenizer.size, part=part)


def _is_complete(source: str, config: Config) -> Iterator[bool]:
    return (bool(a.strip()) and bool(b.strip()) for a, b in read_pairs(source, config))


def _select(source: str, config: Config, mask: np.ndarray) -> Iterator[Pair]:
    return (pair for pair, selected in zip(read_pairs(source, config), mask, strict=True) if selected)


def _encode(pairs: Iterator[Pair], tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """Encode pairs as documents of two sentences; a side without any token becomes the unknown token."""
    while batch := list(itertools.islice(pairs, _BATCH_PAIRS)):
        sides = [tokenizer.encode_batch([pair[side] for pair in batch]) for side in (0, 1)]
        for source, target in zip(*sides, strict=True):
            yield [source or [tokenizer.unk_id], target or [tokenizer.unk_id]]

"""A corpus: a tokenizer and two token stores made from text, built once and found again by a digest of its ingredients.

The digest names the corpus's folder, which has the tokenizer's files (`tokenizer.model` for those that
sentencepiece trains), `train/` and `validation/` (see store.py). A corpus is built in four steps: ingest.py reads and cleans, split.py
divides, the tokenizer is trained, and tokenize_shards.py makes ids. The first and last step run in any number of processes. A work
folder next to the corpus keeps the results of finished steps, so that a build that was killed resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lm_research
from lm_research.common import disk
from lm_research.common.disk import describe_os_error
from lm_research.config import CleanConfig, Config
from lm_research.data import mixture, remote_cache, sources, store
from lm_research.data.cleaning import Cleaner
from lm_research.data.ingest import DocumentSpool, spool
from lm_research.data.split import PARTS, TRAIN, SplitAssignment, assign_splits
from lm_research.data.store import TokenStore
from lm_research.data.tokenize_shards import tokenize_shards
from lm_research.data.workers import Processes, Runner, WorkerDied
from lm_research.errors import DataError, TokenizerError, UserError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import make_tokenizer, tokenizer_key

Log = Callable[[str], None]
# Given a title and the total, if known, returns a context whose value is called with each increment of progress.
Bars = Callable[[str, int | None], contextlib.AbstractContextManager[Callable[[int], object]]]
LOCAL_RUNNER = Processes(1)
FORMAT = 3  # of the folder and of everything that decides its content; increase it to rebuild all corpora
_LIBRARIES = ("numpy", "sentencepiece", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenized corpus. `digest` identifies its content: the tokenizer and the tokens of both parts."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    digest: str

    @property
    def stores(self) -> list[TokenStore]:
        """Stores that a run reads."""
        return [self.train, self.validation]


@contextlib.contextmanager
def no_bar(title: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show no progress."""
    yield lambda amount: None


def open_corpus(
    config: Config, workdir: pathlib.Path, log: Log, runner: Runner = LOCAL_RUNNER, bars: Bars = no_bar
) -> Corpus:
    """Open the corpus of a run. The first call builds it, or resumes a build that was killed; later calls map it into memory.

    Args:
      config: the sections data, clean and tokenizer are used.
      workdir: the run's folder; the corpus is in its subfolder data/ unless config.data.cache_dir names a folder.
      log: called with one line per step.
      runner: runs the parallel steps of a build; the corpus does not depend on it.
      bars: shows progress.

    Raises:
      ConfigError: a key of these sections is invalid.
      DataError: the text is missing, unreadable or too short, or a store is damaged.
      TokenizerError: the tokenizer cannot be trained or loaded.
    """
    started = time.perf_counter()
    outcome = "found"

    def build(folder: pathlib.Path) -> None:
        nonlocal outcome
        _build(config, folder, log, runner, bars)
        outcome = "built"

    folder = remote_cache.find_or_build(config.data.cache_dir, workdir, _key(config), build)
    corpus = read_corpus(folder)
    log(
        f"Corpus {outcome} at {folder}: {corpus.train.num_tokens:,} training and {corpus.validation.num_tokens:,} validation "
        f"tokens, vocabulary {corpus.tokenizer.size:,} ({time.perf_counter() - started:.2f} s)."
    )
    return corpus


def read_corpus(folder: pathlib.Path) -> Corpus:
    """Open a corpus by its folder.

    Raises:
      DataError: a store is missing or damaged.
      TokenizerError: the tokenizer is missing or damaged.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except TokenizerError as error:
        if not (folder / PARTS[0] / store.MANIFEST).exists():  # not a corpus
            raise
        names = ", ".join(sorted(path.name for path in folder.glob("tokenizer*")))
        raise store.damaged(
            folder / PARTS[0], f"the tokenizer next to it ({names}) has changed since it was written"
        ) from error
    train, validation = (TokenStore.open(folder / part) for part in PARTS)
    for part in (train, validation):
        if part.manifest.get("tokenizer_digest") != tokenizer.digest:
            raise store.damaged(part.path, f"it was not made with the tokenizer in {folder}: their digests differ")
    content = f"{tokenizer.digest} {train.digest} {validation.digest}"
    return Corpus(tokenizer, train, validation, hashlib.sha256(content.encode()).hexdigest())


def corpus_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Return the local folder of a run's corpus, whether or not it has been built; for a bucket, that of the local copy."""
    return remote_cache.corpora_folder(config.data.cache_dir, workdir) / _key(config)


def _key(config: Config) -> str:
    """Name the corpus's folder: a digest of everything that determines its content."""
    data, tokenizer = config.data, config.tokenizer
    Cleaner(config.clean)  # rejects invalid settings before anything is read
    held_out = sources.fingerprint(data.validation_source, data) if data.validation_source else data.validation_fraction
    facts = [
        FORMAT,
        [[name, sources.fingerprint(source, data)] for name, source in mixture.sources_of(data)],
        held_out,
        data.document_separator,
        data.on_error,
        _cleaning(config.clean),
        tokenizer_key(tokenizer, "sentinels"),
        tokenizer.keep_newlines and ("one after another" if tokenizer.path else True),  # how sentences are tokenized
    ]
    if data.max_words:  # a corpus that was built without has not been counted
        facts.append(["max_words", data.max_words])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _cleaning(clean: CleanConfig) -> dict[str, object]:
    """Return the section clean in the form that digests of existing corpora contain."""
    lists = {"scripts": ",".join(clean.scripts), "scrub": ",".join(clean.redact_pii)}
    unset = {"near_duplicates": clean.near_duplicates or 0.0, "max_characters": clean.max_characters or 0}
    values = {"scrub" if name == "redact_pii" else name: value for name, value in dataclasses.asdict(clean).items()}
    return values | lists | unset


def _build(config: Config, folder: pathlib.Path, log: Log, runner: Runner, bars: Bars) -> None:
    """Build in a work folder next to `folder` and rename it; another process may do the same and finish first."""
    work = folder.with_name(f".{folder.name}.work")
    try:
        with _locked(work, log):
            if folder.is_dir():
                return
            _build_in(work, config, folder, log, runner, bars)
    except WorkerDied:
        raise  # finished work is kept
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        if folder.is_dir():  # another machine, outside our lock, finished first and removed the work folder
            return
        raise DataError(
            f"The corpus cannot be stored in {folder.parent}: {describe_os_error(error, folder)}. Fix that and run the same command again, "
            "which resumes from the finished part; or set config.data.cache_dir to a writable folder with space for twice the text."
        ) from error


@contextlib.contextmanager
def _locked(work: pathlib.Path, log: Log) -> Iterator[None]:
    """Hold the lock of a work folder, waiting for another process that builds the same corpus. A killed process releases its lock."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log(f"Another process is building this corpus in {work}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.stat(work / "lock").st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if same:  # not a lock file that a finished build removed with its folder
                yield
                return


def _build_in(work: pathlib.Path, config: Config, folder: pathlib.Path, log: Log, runner: Runner, bars: Bars) -> None:
    assignments = _read_and_split(work, config, log, runner, bars)
    _check_words(assignments, config.data.max_words, log)
    tokenizer = _make_tokenizer(config, assignments, work / "tokenizer", log)
    started = time.perf_counter()
    keep_newlines = config.tokenizer.keep_newlines
    with bars("Tokenizing", sum(len(assignment.spool.shards) for assignment in assignments)) as advance:
        pieces = tokenize_shards(assignments, work / "tokenizer", work / "tokens", keep_newlines, runner, advance)
    finished = work / "corpus"
    shutil.rmtree(finished, ignore_errors=True)  # incomplete, from a build that was killed here
    shutil.copytree(work / "tokenizer", finished)
    names = mixture.sources_of(config.data)
    origin = dict(
        origin=[assignment.report for assignment in assignments],
        tokenizer=dict(kind=config.tokenizer.path or config.tokenizer.type, size=tokenizer.size, roles=tokenizer.roles),
        built_with={"lm_research": lm_research.__version__}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
    if config.data.mixture:
        origin["sources"] = [dict(name=name, source=source) for name, source in names]
    for part in PARTS:
        text_bytes = pieces.text_bytes(part)
        extra: dict[str, Any] = dict(part=part, text_bytes=text_bytes, **origin)
        stored = (piece if config.data.mixture else piece._replace(source=0) for piece in pieces.of(part))
        built = store.assemble_store(finished / part, stored, tokenizer.digest, tokenizer.size, **extra)
        log(
            f"Tokenized {part}: {built.num_documents:,} documents, {built.num_sentences:,} sentences, "
            f"{built.num_tokens:,} tokens of {text_bytes / max(built.num_tokens, 1):.2f} bytes "
            f"({time.perf_counter() - started:.1f} s)."
        )
    disk.publish(finished, folder)
    shutil.rmtree(work, ignore_errors=True)


def _read_and_split(work: pathlib.Path, config: Config, log: Log, runner: Runner, bars: Bars) -> list[SplitAssignment]:
    def read(source: str, name: str) -> DocumentSpool:
        started = time.perf_counter()
        with bars(f"Reading {source}", None) as advance:
            found = spool(source, work / "spool" / name, config, runner, advance)
        stats = found.stats()
        seconds = time.perf_counter() - started
        documents, characters = len(stats.reasons_D), int(stats.characters_D.sum())
        log(f"Read {source}: {documents:,} documents, {characters:,} characters ({seconds:.1f} s).")
        if found.skipped:
            log(found.skipped)
        return found

    data = config.data
    held_out = read(data.validation_source, "held_out") if data.validation_source else None
    spools = [read(source, str(number)) for number, (_, source) in enumerate(mixture.sources_of(data))]
    return assign_splits(spools, held_out, config, log)


def _check_words(assignments: list[SplitAssignment], most: int | None, log: Log) -> None:
    """Raise a DataError if the training text has more words than data.max_words."""
    if not most:
        return
    words = sum(len(text.split()) for text in _training_texts(assignments))
    log(f"The training text has {words:,} words.")
    if words > most:
        raise DataError(
            f"The training text has {words:,} words, more than data.max_words={most:,} allows. Give a shorter text or hold out more of it "
            "(data.validation_fraction); or raise the limit, and the run is no longer within it."
        )


def _make_tokenizer(config: Config, assignments: list[SplitAssignment], folder: pathlib.Path, log: Log) -> Tokenizer:
    """Load or train the tokenizer and store its files in `folder`, unless they are there already."""
    if folder.is_dir():
        return load_tokenizer(folder)
    started, settings = time.perf_counter(), config.tokenizer
    with disk.atomic_folder(folder) as temporary:
        tokenizer = make_tokenizer(_training_texts(assignments), settings, temporary, log)
        if settings.path and settings.keep_newlines and not tokenizer.keeps_newlines:
            raise TokenizerError(
                f"config.tokenizer.keep_newlines=True, but the tokenizer {settings.path} turns line breaks "
                "into spaces. Set --config.tokenizer.keep_newlines=False, or leave config.tokenizer.path empty to "
                "train one."
            )
    action = f"Loaded tokenizer {settings.path}" if settings.path else f"Trained tokenizer ({settings.type})"
    log(f"{action}: {tokenizer.size:,} tokens ({time.perf_counter() - started:.1f} s).")
    return load_tokenizer(folder)


def _training_texts(assignments: list[SplitAssignment]) -> Iterator[str]:
    for assignment in assignments:
        for shard in range(len(assignment.spool.shards)):
            train = np.flatnonzero(assignment.of_shard(shard) == TRAIN)
            if len(train):
                documents = assignment.spool.documents(shard)
                yield from (documents[i] for i in train)

"""From text to two token stores, built once and found again by what they are made of.

The folder of a corpus, named by a digest of its ingredients, holds the tokenizer's files (`tokenizer.model` of those that
sentencepiece trains), `train/` and `validation/` (see store.py). It is built in four steps, the first and third by any
number of processes: spool.py reads and cleans, split.py divides, then the tokenizer is trained, tokenize.py makes ids. What
a step has finished lies in a work folder beside it, so that a build that is killed goes on where it was.
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
from lm_research.data.split import PARTS, TRAIN, SplitAssignment, choose
from lm_research.data.store import TokenStore
from lm_research.data.tokenize_shards import tokenize_shards
from lm_research.data.workers import Processes, Runner, WorkerDied
from lm_research.errors import DataError, TokenizerError, UserError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import make_tokenizer, tokenizer_key

Log = Callable[[str], None]
# From a title and what it counts to, if known, to a context that gives a function to be told of progress.
Bars = Callable[[str, int | None], contextlib.AbstractContextManager[Callable[[int], object]]]
HERE = Processes(1)
FORMAT = 3  # of the folder and of everything that decides its content; raise it to build all corpora anew
_LIBRARIES = ("numpy", "sentencepiece", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenized corpus. `digest` tells its content: tokenizer and tokens of both parts, wherever they came from."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    digest: str

    @property
    def stores(self) -> list[TokenStore]:
        """All that a run reads."""
        return [self.train, self.validation]


@contextlib.contextmanager
def no_bar(title: str, total: int | None) -> Iterator[Callable[[int], object]]:
    yield lambda amount: None


def open_corpus(config: Config, workdir: pathlib.Path, log: Log, runner: Runner = HERE, bars: Bars = no_bar) -> Corpus:
    """The corpus of a run; the first call builds it, or goes on with a build that was killed, later ones map it.

    Args:
      config: the sections data, clean and tokenizer are used.
      workdir: the run's folder; the corpus lives in data/ below it unless config.data.cache_dir names a folder.
      log: told one line a step.
      runner: where the parallel steps of a build run; the corpus does not depend on it.
      bars: shows progress.

    Raises:
      ConfigError: keys of these sections that cannot be understood.
      DataError: the text is missing, unreadable or too little, or a store is damaged.
      TokenizerError: the tokenizer cannot be trained or loaded.
    """
    started = time.perf_counter()
    what = "found"

    def build(folder: pathlib.Path) -> None:
        nonlocal what
        _build(config, folder, log, runner, bars)
        what = "built"

    folder = remote_cache.find_or_build(config.data.cache_dir, workdir, _key(config), build)
    corpus = read_corpus(folder)
    log(
        f"Corpus {what} at {folder}: {corpus.train.num_tokens:,} training and {corpus.validation.num_tokens:,} validation "
        f"tokens, vocabulary {corpus.tokenizer.size:,} ({time.perf_counter() - started:.2f} s)."
    )
    return corpus


def read_corpus(folder: pathlib.Path) -> Corpus:
    """A corpus by its folder.

    Raises:
      DataError, TokenizerError: it is none, or damaged.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except TokenizerError as error:
        if not (folder / PARTS[0] / store.MANIFEST).exists():  # it is no corpus
            raise
        names = ", ".join(sorted(path.name for path in folder.glob("tokenizer*")))
        raise store.damaged(folder / PARTS[0], f"the tokenizer beside it ({names}) is not what was written") from error
    train, validation = (TokenStore.open(folder / part) for part in PARTS)
    for part in (train, validation):
        if part.manifest.get("tokenizer_digest") != tokenizer.digest:
            raise store.damaged(part.path, f"it was not made with the tokenizer in {folder}: their digests differ")
    content = f"{tokenizer.digest} {train.digest} {validation.digest}"
    return Corpus(tokenizer, train, validation, hashlib.sha256(content.encode()).hexdigest())


def corpus_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Where the corpus of a run lies, or will lie; of one in a bucket its copy here."""
    return remote_cache.corpora(config.data.cache_dir, workdir) / _key(config)


def _key(config: Config) -> str:
    """Name of the corpus's folder: a digest of all that decides what is in it."""
    data, tokenizer = config.data, config.tokenizer
    Cleaner(config.clean)  # complains of what it cannot understand, before anything is read
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
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _cleaning(clean: CleanConfig) -> dict[str, object]:
    """The section clean as the names of corpora have always had it."""
    lists = {"scripts": ",".join(clean.scripts), "scrub": ",".join(clean.redact_pii)}
    unset = {"near_duplicates": clean.near_duplicates or 0.0, "max_characters": clean.max_characters or 0}
    values = {"scrub" if name == "redact_pii" else name: value for name, value in dataclasses.asdict(clean).items()}
    return values | lists | unset


def _build(config: Config, folder: pathlib.Path, log: Log, runner: Runner, bars: Bars) -> None:
    """Builds in a work folder beside `folder` and renames; another process may do the same and be first."""
    work = folder.with_name(f".{folder.name}.work")
    try:
        with _alone(work, log):
            if folder.is_dir():
                return
            _build_in(work, config, folder, log, runner, bars)
    except WorkerDied:
        raise  # and what is finished stays
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        if folder.is_dir():  # another machine, which our lock does not reach, was first and cleared the work away
            return
        raise DataError(
            f"The corpus cannot be stored in {folder.parent}: {describe_os_error(error, folder)}. What is finished is kept there, and the same command goes "
            "on with it once that is fixed; or set config.data.cache_dir to a folder that can be written and has room for the text twice."
        ) from error


@contextlib.contextmanager
def _alone(work: pathlib.Path, log: Log) -> Iterator[None]:
    """Holds the lock in a work folder, which a killed process loses; waits for another process that builds the same."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log(f"Another process builds this corpus in {work}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.stat(work / "lock").st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if same:  # and not one that a finished build took away with its folder
                yield
                return


def _build_in(work: pathlib.Path, config: Config, folder: pathlib.Path, log: Log, runner: Runner, bars: Bars) -> None:
    choices = _read_and_split(work, config, log, runner, bars)
    tokenizer = _make_tokenizer(config, choices, work / "tokenizer", log)
    started = time.perf_counter()
    keep_newlines = config.tokenizer.keep_newlines
    with bars("Tokenizing", sum(len(choice.spool.shards) for choice in choices)) as advance:
        pieces = tokenize_shards(choices, work / "tokenizer", work / "tokens", keep_newlines, runner, advance)
    finished = work / "corpus"
    shutil.rmtree(finished, ignore_errors=True)  # half of one, from a build that was killed here
    shutil.copytree(work / "tokenizer", finished)
    names = mixture.sources_of(config.data)
    origin = dict(
        origin=[choice.report for choice in choices],
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
        facts = found.facts()
        seconds = time.perf_counter() - started
        documents, characters = len(facts.reasons_D), int(facts.characters_D.sum())
        log(f"Read {source}: {documents:,} documents, {characters:,} characters ({seconds:.1f} s).")
        if found.skipped:
            log(found.skipped)
        return found

    data = config.data
    held_out = read(data.validation_source, "held_out") if data.validation_source else None
    spools = [read(source, str(number)) for number, (_, source) in enumerate(mixture.sources_of(data))]
    return choose(spools, held_out, config, log)


def _make_tokenizer(config: Config, choices: list[SplitAssignment], folder: pathlib.Path, log: Log) -> Tokenizer:
    """Loads or trains the tokenizer, and puts its files into the folder, unless they are there already."""
    if folder.is_dir():
        return load_tokenizer(folder)
    started, settings = time.perf_counter(), config.tokenizer
    with disk.atomic_folder(folder) as temporary:
        tokenizer = make_tokenizer(_training_texts(choices), settings, temporary, log)
        if settings.path and settings.keep_newlines and not tokenizer.keeps_newlines:
            raise TokenizerError(
                f"config.tokenizer.keep_newlines=True, but the tokenizer {settings.path} turns line breaks "
                "into spaces. Set --config.tokenizer.keep_newlines=False, or leave config.tokenizer.path empty to "
                "train one."
            )
    what = f"Loaded tokenizer {settings.path}" if settings.path else f"Trained tokenizer ({settings.type})"
    log(f"{what}: {tokenizer.size:,} tokens ({time.perf_counter() - started:.1f} s).")
    return load_tokenizer(folder)


def _training_texts(choices: list[SplitAssignment]) -> Iterator[str]:
    for choice in choices:
        for shard in range(len(choice.spool.shards)):
            train = np.flatnonzero(choice.of_shard(shard) == TRAIN)
            if len(train):
                documents = choice.spool.documents(shard)
                yield from (documents[place] for place in train)

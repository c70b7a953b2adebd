"""From text to two token stores, built once and found again by what they are made of.

The folder of a corpus, named by a digest of its ingredients, holds the tokenizer's files (`tokenizer.model` of those that
are trained here), `train/` and `validation/` (see store.py). Documents are numbered as their source gives them, held out by
a hash of that number, and never shuffled: order is decided when examples are drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lm_research.config import Config
from lm_research.data import random, sources, store
from lm_research.data.hf_tokenizer import load_tokenizer
from lm_research.data.sentences import split_sentences
from lm_research.data.store import TokenStore
from lm_research.data.tokenizer import TextTokenizer, Tokenizer
from lm_research.errors import DataError, TokenizerError

Log = Callable[[str], None]
FORMAT = 1  # of the folder and of everything that decides its content; raise it to build all corpora anew
_BATCH_SENTENCES = 20_000  # tokenised in one call
_TRAIN, _VALIDATION, _DROPPED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. `digest` tells its content: tokenizer and tokens of both parts, wherever they came from."""

    tokenizer: TextTokenizer
    train: TokenStore
    validation: TokenStore
    digest: str


def open_corpus(config: Config, workdir: pathlib.Path, log: Log) -> Corpus:
    """The corpus of a run; builds it on the first call, which is killed or finishes whole, and maps it afterwards.

    Args:
      config: the sections data and tokenizer are used.
      workdir: the run's folder; the corpus lives in data/ below it unless config.data.cache_dir names a folder.
      log: told one line a step.

    Raises:
      DataError: the text is missing, unreadable or too little, or a store is damaged.
      TokenizerError: the tokenizer cannot be trained or loaded.
    """
    started = time.perf_counter()
    cache = (
        pathlib.Path(config.data.cache_dir).expanduser() if config.data.cache_dir else pathlib.Path(workdir) / "data"
    )
    folder = cache / _key(config)
    if not folder.is_dir():
        _build(config, folder, log)
        what = "built"
    else:
        what = "found"
    tokenizer = load_tokenizer(folder)
    train, validation = TokenStore.open(folder / "train"), TokenStore.open(folder / "validation")
    for part in (train, validation):
        if part.manifest.get("tokenizer_digest") != tokenizer.digest:
            raise DataError(
                f"{part.path} was not made with the tokenizer in {folder}: their digests differ. Delete the folder "
                f"{folder}; the next run rebuilds it."
            )
    content = f"{tokenizer.digest} {train.digest} {validation.digest}"
    log(
        f"Corpus {what} at {folder}: {train.num_tokens:,} training and {validation.num_tokens:,} validation tokens, "
        f"vocabulary {tokenizer.size:,} ({time.perf_counter() - started:.2f} s)."
    )
    return Corpus(tokenizer, train, validation, hashlib.sha256(content.encode()).hexdigest())


def _key(config: Config) -> str:
    """Name of the corpus's folder: a digest of all that decides what is in it."""
    data, tokenizer = config.data, config.tokenizer
    held_out = sources.fingerprint(data.validation_source, data) if data.validation_source else data.validation_fraction
    if tokenizer.path:
        vocabulary = [load_tokenizer(tokenizer.path).digest]
    else:
        vocabulary = [tokenizer.kind, tokenizer.vocab_size]
    facts = [
        FORMAT,
        sources.fingerprint(data.source, data),
        held_out,
        data.documents,
        vocabulary,
        tokenizer.keep_newlines,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _build(config: Config, folder: pathlib.Path, log: Log) -> None:
    """Builds beside the folder and renames; another process may do the same and be first."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise DataError(
            f"The corpus cannot be stored in {folder.parent}: {error.strerror}. Set config.data.cache_dir to a folder that "
            "can be written."
        ) from error
    try:
        split = _choose_split(config, log)
        tokenizer = _make_tokenizer(config, split.train(), temporary, log)
        held_source = config.data.validation_source or config.data.source
        for name, source, documents in (
            ("train", config.data.source, split.train()),
            ("validation", held_source, split.validation()),
        ):
            with _timed(log) as say:
                text = _Text(documents)
                encoded = _encode(text, tokenizer, config.tokenizer.keep_newlines)
                extra = dict(text_bytes=lambda text=text: text.bytes, source=source, part=name)
                part = store.write_store(temporary / name, encoded, tokenizer.digest, tokenizer.size, **extra)
                say(
                    f"Tokenised {name}: {part.num_documents:,} documents, {part.num_sentences:,} sentences, "
                    f"{part.num_tokens:,} tokens of {text.bytes / max(part.num_tokens, 1):.2f} bytes"
                )
        store.publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _timed(log: Log) -> Iterator[Log]:
    """Gives a function that logs a line with the seconds since the start."""
    started = time.perf_counter()
    yield lambda line: log(f"{line} ({time.perf_counter() - started:.1f} s).")


@dataclasses.dataclass(frozen=True)
class _Split:
    """Makers of the two parts' documents: sources are read again for each pass, so memory never holds a corpus."""

    train: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]]


def _choose_split(config: Config, log: Log) -> _Split:
    data = config.data
    seen: set[bytes] = set()  # 16 bytes a document
    if data.validation_source:  # read first, so that what it shares with the training text leaves the training text
        validation_parts = _survey(data.validation_source, config, seen, log)
        _need(validation_parts, data.validation_source)
        validation_parts[validation_parts == _TRAIN] = _VALIDATION
        parts = _survey(data.source, config, seen, log)
        if not (parts == _TRAIN).any():
            raise DataError(
                f"No document of {data.source} is left to train on: each is empty or stands in "
                f"config.data.validation_source={data.validation_source} too. Give another validation corpus, or leave that "
                "key empty to hold out a share."
            )
    else:
        parts = _survey(data.source, config, seen, log)
        _need(parts, data.source)
        if np.count_nonzero(parts == _TRAIN) == 1:
            return _cut_document(config, parts, log)
        _hold_out(parts, data.validation_fraction)
        validation_parts = parts
    held_source = data.validation_source or data.source
    log(
        f"Split: {np.count_nonzero(parts == _TRAIN):,} documents to train on, "
        f"{np.count_nonzero(validation_parts == _VALIDATION):,} held out."
    )
    return _Split(
        train=lambda: _select(data.source, config, parts, _TRAIN),
        validation=lambda: _select(held_source, config, validation_parts, _VALIDATION),
    )


def _survey(source: str, config: Config, seen: set[bytes], log: Log) -> np.ndarray:
    """Reads a source once: uint8 [documents], _DROPPED for the empty and for repeats of `seen`, which it extends."""
    with _timed(log) as say:
        parts, empty, repeated, characters = bytearray(), 0, 0, 0
        for document in sources.read_documents(source, config.data):
            digest = hashlib.blake2b(document.encode(errors="replace"), digest_size=16).digest()
            keep = bool(document.strip()) and digest not in seen
            empty += not document.strip()
            repeated += bool(document.strip()) and not keep
            parts.append(_TRAIN if keep else _DROPPED)
            if keep:
                seen.add(digest)
                characters += len(document)
        say(f"Read {source}: {len(parts):,} documents, {characters:,} characters")
    if empty or repeated:
        log(f"Warning: {source}: left out {repeated:,} documents that occurred before and {empty:,} empty ones.")
    return np.frombuffer(parts, dtype=np.uint8).copy()


def _need(parts: np.ndarray, source: str) -> None:
    if not (parts == _TRAIN).any():
        raise DataError(f"The corpus {source} is empty: none of its {len(parts)} documents holds text.")


def _hold_out(parts: np.ndarray, fraction: float) -> None:
    """Marks documents for validation, in place: those whose number draws below `fraction`, and at least one."""
    kept = np.flatnonzero(parts == _TRAIN)
    draws = random.uniform(random.example_keys(0, "validation", 0, kept), 1)[:, 0]
    held = draws < fraction
    held[draws.argmin()] = True
    held[draws.argmax()] = False
    parts[kept[held]] = _VALIDATION


def _cut_document(config: Config, parts: np.ndarray, log: Log) -> _Split:
    """For a corpus of one document: its last sentences are held out."""
    data, keep_newlines = config.data, config.tokenizer.keep_newlines
    (document,) = _select(data.source, config, parts, _TRAIN)
    sentences = split_sentences(document, keep_newlines)
    if len(sentences) < 2:
        raise DataError(
            f"The corpus {data.source} is too small: one document of one sentence leaves nothing to hold out. Give more "
            f"text (config.data.documents={data.documents!r} says how text files are divided) or a "
            "config.data.validation_source."
        )
    count = min(max(1, round(data.validation_fraction * len(sentences))), len(sentences) - 1)
    glue = "" if keep_newlines else " "
    train, validation = glue.join(sentences[:-count]), glue.join(sentences[-count:])
    log(
        f"Split: one document; its first {len(sentences) - count:,} sentences to train on, its last {count:,} held out."
    )
    return _Split(train=lambda: iter([train]), validation=lambda: iter([validation]))


def _select(source: str, config: Config, parts: np.ndarray, part: int) -> Iterator[str]:
    """Documents of one part, in order."""
    documents = sources.read_documents(source, config.data)
    for document, its_part in itertools.zip_longest(documents, parts):
        if document is None or its_part is None:
            raise DataError(f"The corpus {source} changed while it was read. Run again when nothing writes to it.")
        if its_part == part:
            yield document


def _make_tokenizer(config: Config, documents: Iterator[str], folder: pathlib.Path, log: Log) -> TextTokenizer:
    """Loads or trains the tokenizer, and puts its files into the folder."""
    with _timed(log) as say:
        if config.tokenizer.path:
            tokenizer = load_tokenizer(config.tokenizer.path)
            if config.tokenizer.keep_newlines and not tokenizer.keeps_newlines:
                raise TokenizerError(
                    f"config.tokenizer.keep_newlines=True, but the tokenizer {config.tokenizer.path} turns line breaks "
                    "into spaces. Set --config.tokenizer.keep_newlines=False, or leave config.tokenizer.path empty to "
                    "train one."
                )
            tokenizer.save_files(folder)
            say(f"Loaded tokenizer {config.tokenizer.path}: {tokenizer.size:,} tokens")
        else:
            tokenizer = Tokenizer.train(documents, config.tokenizer, folder / "tokenizer.model")
            say(f"Trained tokenizer ({config.tokenizer.kind}): {tokenizer.size:,} tokens")
    return tokenizer


class _Text:
    """Passes documents on and counts their bytes."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = documents
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for document in self._documents:
            self.bytes += len(document.encode(errors="replace"))
            yield document


def _encode(documents: Iterable[str], tokenizer: TextTokenizer, keep_newlines: bool) -> Iterator[list[list[int]]]:
    """Documents as sentences as ids, tokenised many documents at a time."""
    # Sentencepiece and WordPiece put the space between sentences back themselves; byte-level tokenizers do not.
    joined = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("b")])
    gap = "" if keep_newlines or joined != "ab" else " "
    sentences: list[str] = []
    lengths: list[int] = []
    for document in itertools.chain(documents, [None]):
        if document is not None:
            split = split_sentences(document, keep_newlines)
            sentences += split[:1] + [gap + sentence for sentence in split[1:]]
            lengths.append(len(split))
        if document is None or len(sentences) >= _BATCH_SENTENCES:
            encoded = iter(tokenizer.encode_batch(sentences))
            for length in lengths:
                if kept := [ids for ids in itertools.islice(encoded, length) if ids]:
                    yield kept
            sentences, lengths = [], []

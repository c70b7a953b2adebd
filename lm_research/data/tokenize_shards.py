"""Tokenize shards: the last stage of preparing a corpus, from spools of text to pieces of token stores."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_research.common.disk import atomic_file
from lm_research.data.encode import encode_documents
from lm_research.data.ingest import Advance, DocumentSpool
from lm_research.data.split import PARTS, SplitAssignment
from lm_research.data.store import Piece
from lm_research.data.workers import Runner
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer

_ARRAYS = ("tokens", "sentence_lengths", "document_lengths")


@dataclasses.dataclass(frozen=True)
class _Task:
    spool: DocumentSpool
    shard: int
    parts: np.ndarray  # part of each document
    source: int
    tokenizer: pathlib.Path
    keep_newlines: bool
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class TokenizedShards:
    """Tokenized shards on disk: (file, index of its source), in order."""

    shards: list[tuple[pathlib.Path, int]]

    def of(self, part: str) -> Iterator[Piece]:
        """Read the pieces of one part ("train" or "validation")."""
        for path, source in self.shards:
            with np.load(path) as file:
                yield Piece(**{name: file[f"{part}_{name}"] for name in _ARRAYS}, source=source)

    def text_bytes(self, part: str) -> int:
        """Sum the UTF-8 bytes of the text of one part."""
        total = 0
        for path, _ in self.shards:
            with np.load(path) as file:
                total += int(file[f"{part}_bytes"])
        return total


def tokenize_shards(
    assignments: list[SplitAssignment],
    tokenizer: pathlib.Path,
    folder: pathlib.Path,
    keep_newlines: bool,
    runner: Runner,
    advance: Advance,
) -> TokenizedShards:
    """Tokenize the training and validation documents of spools, resuming what an earlier call began in `folder`.

    Raises:
      WorkerDied: a worker process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[pathlib.Path, int]] = []

    def tasks() -> Iterator[_Task]:
        for source, assignment in enumerate(assignments):
            for shard in range(len(assignment.spool.shards)):
                path = folder / f"{source:03}-{shard:06}.npz"
                shards.append((path, source))
                if path.is_file():
                    advance(1)
                else:
                    parts = assignment.of_shard(shard)
                    yield _Task(assignment.spool, shard, parts, source, tokenizer, keep_newlines, path)

    runner.run(_tokenize_shard, tasks(), lambda _: advance(1))
    return TokenizedShards(shards)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: pathlib.Path) -> Tokenizer:
    return load_tokenizer(folder)


def _tokenize_shard(task: _Task) -> None:
    tokenizer, documents = _tokenizer(task.tokenizer), task.spool.documents(task.shard)
    arrays: dict[str, Any] = {}
    for number, part in enumerate(PARTS):
        texts = [documents[place] for place in np.flatnonzero(task.parts == number)]
        piece = encode_documents(texts, tokenizer, task.keep_newlines)
        arrays |= {f"{part}_{name}": getattr(piece, name) for name in _ARRAYS}
        arrays[f"{part}_bytes"] = np.int64(sum(len(text.encode()) for text in texts))
    with atomic_file(task.path) as file:
        np.savez(file, **arrays)

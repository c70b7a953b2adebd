"""Ingest: the first stage of preparing a corpus, which stores its cleaned text and statistics of each document in shards on disk.

A shard has consecutive documents of about SHARD_CHARACTERS characters, so its content depends only on the source.
Workers clean and write shards. A shard that is on disk is complete, and a restarted build does not make it again.

Shapes: D documents of a spool.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lm_research.common.disk import atomic_file
from lm_research.config import CleanConfig, Config, DataConfig
from lm_research.data import sources
from lm_research.data.cleaning import REASONS, Cleaner, near_duplicates, scrub
from lm_research.data.sources.problems import Problems
from lm_research.data.workers import Runner
from lm_research.errors import DataError

SHARD_CHARACTERS = 1_000_000
_DONE = "spool.json"
Advance = Callable[[int], Any]  # called with the number of characters that have just been processed


@dataclasses.dataclass(frozen=True)
class _Task:
    path: pathlib.Path
    documents: list[str]
    clean: CleanConfig


@dataclasses.dataclass(frozen=True)
class DocumentSpool:
    """A corpus's text on disk.

    Attributes:
      source: the source of the text.
      shards: its files, in order.
      skipped: a line for the log about input that could not be read; "" if there was none.
      num_skipped: number of skipped lines or records.
    """

    source: str
    shards: list[pathlib.Path]
    skipped: str
    num_skipped: int

    def stats(self) -> DocumentStats:
        """Read the statistics of all documents."""
        return DocumentStats.concatenate([_read_stats(path) for path in self.shards])

    def documents(self, shard: int) -> list[str]:
        """Read the texts of a shard, including those that a filter left out."""
        with np.load(self.shards[shard]) as file:
            text, ends = file["text"].tobytes().decode("utf-8"), file["ends"].tolist()
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclasses.dataclass(frozen=True)
class DocumentStats:
    """Statistics of each document of a spool, and of each shard.

    Attributes:
      reasons_D: uint8, index in cleaning.REASONS.
      characters_D: int64, after cleaning.
      digests_D: uint64 [D, 2], digests of the texts after cleaning.
      signatures_DK: uint32, signatures of near_duplicates.py; [D, 0] if near duplicates are kept.
      scrubbed: int64 [shards, scrub.KINDS], number of replacements.
      shard_sizes: int64, documents of each shard.
    """

    reasons_D: np.ndarray
    characters_D: np.ndarray
    digests_D: np.ndarray
    signatures_DK: np.ndarray
    scrubbed: np.ndarray
    shard_sizes: np.ndarray

    @classmethod
    def concatenate(cls, parts: list[DocumentStats]) -> DocumentStats:
        """Concatenate the statistics of several shards or spools."""
        arrays = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(cls)}
        return cls(**{name: np.concatenate(values) for name, values in arrays.items()})


def _read_stats(path: pathlib.Path) -> DocumentStats:
    with np.load(path) as file:
        return DocumentStats(**{field.name: file[field.name] for field in dataclasses.fields(DocumentStats)})


@dataclasses.dataclass(frozen=True)
class _FileTask:
    folder: pathlib.Path
    source: str
    place: int
    data: DataConfig
    clean: CleanConfig


def spool(source: str, folder: pathlib.Path, config: Config, runner: Runner, advance: Advance) -> DocumentSpool:
    """Read and clean a source into `folder`, resuming what an earlier call began there.

    Raises:
      DataError: the source cannot be read, or has no text.
      WorkerDied: a worker process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _DONE).is_file():
        done = (_spool_files if runner.by_file else _spool_documents)(source, folder, config, runner, advance)
        if not done["shards"]:
            raise DataError(f"The corpus {source} is empty: it has no text. Set config.data.source to another one.")
        _write_json(folder / _DONE, done)
    done = json.loads((folder / _DONE).read_bytes())
    return DocumentSpool(source, [folder / name for name in done["shards"]], done["skipped"], done["num_skipped"])


def _spool_documents(
    source: str, folder: pathlib.Path, config: Config, runner: Runner, advance: Advance
) -> dict[str, Any]:
    """Read in this process and distribute shards of text, which may span several files."""
    problems = Problems(config.data.on_error)
    documents = sources.read_documents(source, config.data, problems)
    names: list[str] = []

    def tasks() -> Iterator[_Task]:
        for number, shard in enumerate(_shards(documents)):
            names.append(f"{number:06}.npz")
            if (folder / names[-1]).is_file():
                advance(sum(map(len, shard)))
            else:
                yield _Task(folder / names[-1], shard, config.clean)

    runner.run(_write_shard, tasks(), advance)
    return dict(shards=names, skipped=problems.report(source), num_skipped=problems.count)


def _spool_files(source: str, folder: pathlib.Path, config: Config, runner: Runner, advance: Advance) -> dict[str, Any]:
    """Let each task read one file; a list of its shards marks a finished file."""
    lists = [folder / f"{place:06}.json" for place in range(sources.num_files(source))]
    tasks = [
        _FileTask(folder, source, place, config.data, config.clean)
        for place, path in enumerate(lists)
        if not path.is_file()
    ]
    runner.run(_spool_file, tasks, advance)
    parts = [json.loads(path.read_bytes()) for path in lists]
    return dict(
        shards=[name for part in parts for name in part["shards"]],
        skipped=" ".join(part["skipped"] for part in parts if part["skipped"]),
        num_skipped=sum(part["num_skipped"] for part in parts),
    )


def _spool_file(task: _FileTask) -> int:
    """Read and clean one file, write its shards and then their list; returns the number of characters read."""
    problems, names, characters = Problems(task.data.on_error), [], 0
    for number, shard in enumerate(_shards(sources.read_file(task.source, task.place, task.data, problems))):
        names.append(f"{task.place:06}-{number:06}.npz")
        characters += _write_shard(_Task(task.folder / names[-1], shard, task.clean))
    done = dict(shards=names, skipped=problems.report(task.source), num_skipped=problems.count)
    _write_json(task.folder / f"{task.place:06}.json", done)
    return characters


def _shards(documents: Iterable[str]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for document in documents:
        shard.append(document)
        size += len(document) + 1
        if size > SHARD_CHARACTERS:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(task: _Task) -> int:
    """Clean and write a shard; returns the number of characters read."""
    cleaner, near = Cleaner(task.clean), bool(task.clean.near_duplicates)
    cleaned = [cleaner(document) for document in task.documents]
    write_shard(
        task.path,
        [document.text for document in cleaned],
        [document.reason for document in cleaned],
        near,
        np.sum([document.scrubbed for document in cleaned], axis=0),
    )
    return sum(map(len, task.documents))


def write_shard(
    path: pathlib.Path, texts: list[str], reasons: list[int], near: bool = False, scrubbed: np.ndarray | None = None
) -> None:
    """Write the texts of a shard and their statistics."""
    kept = [reason == REASONS.index("kept") for reason in reasons]
    digests = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest() for text in texts)
    none = np.zeros(near_duplicates.SIZE, dtype=np.uint32)
    signatures = (
        [near_duplicates.signature(text) if keep else none for text, keep in zip(texts, kept, strict=True)]
        if near
        else []
    )
    stats = DocumentStats(
        reasons_D=np.array(reasons, dtype=np.uint8),
        characters_D=np.fromiter(map(len, texts), np.int64, len(texts)),
        digests_D=np.frombuffer(digests, dtype="<u8").reshape(-1, 2),
        signatures_DK=np.array(signatures, dtype=np.uint32) if near else np.zeros((len(texts), 0), np.uint32),
        scrubbed=np.zeros((1, len(scrub.KINDS)), np.int64) if scrubbed is None else scrubbed[None].astype(np.int64),
        shard_sizes=np.array([len(texts)], dtype=np.int64),
    )
    text = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8)
    arrays = dataclasses.asdict(stats) | {"text": text, "ends": np.cumsum(stats.characters_D)}
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())

"""Labeled data sets as token stores: records become rows of ids, with the special tokens that the model expects.

A data set's folder holds the tokenizer's files and the stores `train/`, `validation/` and, if there is one, `test/`, with one document
per row. Next to each store are

    PART.npz            `labels`: class numbers [N], 0 or 1 per class [N, C], values [N], or a class per token [T], -100 without a label
                        `second` [N]: where the second text of a pair begins in its row, 0 without one
                        `record` [N]: each row's record, if a record can have several rows
                        `offsets` [T, 2]: the characters of each token, for held-out parts whose answers are spans of a text
    PART.jsonl          what scoring needs of each held-out record in addition (Reader.metadata)
    PART.records.jsonl  the place and the original text of each held-out record, for readers of predictions

A data set is built once and cached under a key of everything that it depends on.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from typing_extensions import override

from lm_research.common import documents
from lm_research.common.disk import atomic_folder
from lm_research.common.paths import odd_file
from lm_research.config import Config, TaskConfig
from lm_research.data import remote_cache, stateless_rng, store
from lm_research.data.corpus import Corpus
from lm_research.data.store import TokenStore
from lm_research.data.verify import check_files
from lm_research.errors import DataError, UserError
from lm_research.tasks.records import Record, fingerprint, read_records
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import make_tokenizer, tokenizer_key

IGNORED = -100  # no label
FORMAT = 3
DIGESTS = "digests.json"  # SHA-256 of each file next to the stores; written last
_BATCH = 1_000  # records tokenized in one call


class Row(NamedTuple):
    """One record, or a part of one, as ids.

    Attributes:
      ids: [L].
      second: where the second text begins, 0 without one.
      labels: one label, several, or one per id.
      first: whether it is the first row of its record.
      offsets: the characters [from, to) of the record's text that each id covers [L, 2], for tasks that need them.
      cuts: where the row's second, third, ... part begins, for tasks that treat parts differently (prompt and answer).
    """

    ids: list[int] | np.ndarray
    second: int
    labels: int | float | list[int]
    first: bool = True
    offsets: np.ndarray | None = None
    cuts: tuple[int, ...] = ()

    @property
    def parts(self) -> list[list[int] | np.ndarray]:
        """The ids of each part; a store keeps the parts as the sentences of a document."""
        edges = (0, *self.cuts, len(self.ids))
        return [self.ids[start:end] for start, end in itertools.pairwise(edges)]


class Reader(abc.ABC):
    """Converts a task's records to rows. Its methods raise a DataError that names the record.

    Attributes:
      config: of the run.
      by_token: whether rows have a label for each id.
      unnamed_labels: the log's word for labels that have no names.
    """

    config: Config
    unnamed_labels: str = "none"
    by_token: ClassVar[bool] = False

    def resolve(self, parts: dict[str, list[Record]], log: Callable[[str], None]) -> dict[str, list[Record]]:
        """Resolve what can only be decided from all records together, and log it; return the records of each part."""
        return parts

    def label_names(self, records: Sequence[Record]) -> list[str]:
        """List all labels in order, from the training records; empty where labels are values or texts."""
        return []

    @abc.abstractmethod
    def texts(self, record: Record) -> list[str]:
        """Return the texts of a record, on which a tokenizer may be trained."""

    def prepare(self, tokenizer: Tokenizer) -> Tokenizer:
        """Adapt the tokenizer to the task."""
        return tokenizer

    @abc.abstractmethod
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        """Convert records to rows; `names` are the labels, in order."""

    def metadata(self, record: Record) -> dict[str, Any] | None:
        """Return what scoring needs of a held-out record in addition to its labels; None if it needs nothing."""
        return None

    def is_valid(self, record: Record) -> bool:
        """Check whether a record has content; with data.on_error=skip, records without are left out and counted."""
        return True

    def summarize_lengths(self, rows: Sequence[Row], tokenizer: Tokenizer) -> str:
        """Describe the lengths of rows for the log."""
        longest = self.config.data.max_length
        full = sum(len(row.ids) >= longest for row in rows)
        return f"{full:,} of them fill or were cut to data.max_length={longest} tokens"


@dataclasses.dataclass(frozen=True)
class LabeledCorpus(Corpus):
    """A labeled data set.

    Attributes:
      labels: names in order.
      arrays: the arrays of PART.npz, by part.
      test: the store of the test part, if there is one.
      metadata: what scoring needs of each record (Reader.metadata), by held-out part.
      record_files: the file with {"where", "text"} of each record, by held-out part.
    """

    labels: tuple[str, ...] = ()
    arrays: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    test: TokenStore | None = None
    metadata: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    record_files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)

    @property
    @override
    def stores(self) -> list[TokenStore]:
        return list(self.parts.values())

    @property
    def parts(self) -> dict[str, TokenStore]:
        """The stores by the name of their part."""
        stores = {"train": self.train, "validation": self.validation}
        return stores | ({"test": self.test} if self.test else {})

    def part_of(self, store: TokenStore) -> str:
        """Name the part that a store holds."""
        return next(name for name, own in self.parts.items() if own is store)

    def first_row_number(self, part: str) -> int:
        """Return the number of a part's first row. Held-out rows are numbered through: the test part follows the validation part."""
        return self.validation.num_documents if part == "test" else 0

    def locate(self, number: int) -> tuple[str, int]:
        """Find a held-out row by its number: its part, and its number within that part."""
        held = self.validation.num_documents
        return ("test", number - held) if number >= held else ("validation", number)

    def records_of_rows(self, part: str) -> np.ndarray:
        """Return the record of each row of a part."""
        record = self.arrays[part].get("record")
        return np.arange(self.parts[part].num_documents) if record is None else record


def open_labeled(
    config: Config,
    workdir: pathlib.Path,
    reader: Reader,
    log: Callable[[str], None],
    labels: Sequence[str] | None = None,
) -> LabeledCorpus:
    """Open the data set of a run; the first call builds it.

    Args:
      config: the sections task, data and tokenizer are used.
      workdir: the run's folder; the data set is in its folder data/ unless config.data.cache_dir names another.
      reader: converts the task's records.
      log: receives a line about each part.
      labels: names in order, if they are given; None collects them from the records.

    Raises:
      DataError: records are missing or wrong, or too few.
      TokenizerError: the tokenizer cannot be trained or loaded.
    """

    def build(folder: pathlib.Path) -> None:
        with atomic_folder(folder) as temporary:
            _build(config, temporary, reader, log, labels)

    folder = remote_cache.find_or_build(config.data.cache_dir, workdir, _key(config, reader), build)
    return read_labeled(folder)


def read_labeled(folder: pathlib.Path) -> LabeledCorpus:
    """Read a data set from its folder; raise a DataError or TokenizerError if it is damaged."""
    if odd := odd_file(folder):  # reading a pipe would block
        raise store.damaged(folder / DIGESTS, odd, "data set of")
    if (folder / DIGESTS).is_file():  # earlier versions wrote none
        try:
            digests = documents.read_json(folder / DIGESTS, dict[str, str], error=DataError)
        except DataError as error:
            raise store.damaged(folder / DIGESTS, "it cannot be read", "file") from error
        check_files(folder, digests)
    try:
        return _read_labeled(folder)
    except UserError:
        raise
    except Exception as error:  # NumPy raises many kinds for a damaged archive
        if store.is_machine_error(error):
            raise
        raise store.damaged(folder / DIGESTS, f"a file next to it cannot be read ({error})", "data set of") from error


def _read_labeled(folder: pathlib.Path) -> LabeledCorpus:
    tokenizer = load_tokenizer(folder)
    parts = {
        part: TokenStore.open(folder / part) for part in ("train", "validation", "test") if (folder / part).is_dir()
    }
    arrays = {part: dict(np.load(folder / f"{part}.npz")) for part in parts}
    names = _read_json((folder / "labels.json").read_bytes(), folder / "labels.json", list[str])
    facts = [tokenizer.digest, names, *(opened.digest for opened in parts.values())]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for own in arrays.values():
        digest.update(own["labels"].tobytes())
    metadata = {}
    for part in parts:
        if (path := folder / f"{part}.jsonl").is_file():
            lines = enumerate(path.read_bytes().splitlines(), 1)
            metadata[part] = [_read_json(line, path, documents.Object, f", line {number}") for number, line in lines]
    return LabeledCorpus(
        tokenizer,
        parts["train"],
        parts["validation"],
        digest.hexdigest(),
        tuple(names),
        arrays,
        parts.get("test"),
        metadata,
        {part: folder / f"{part}.records.jsonl" for part in parts if part != "train"},
    )


def _read_json(text: bytes, path: pathlib.Path, kind: Any, place: str = "") -> Any:
    try:
        return documents.parse_json(text, f"{path}{place}", kind, fix="")
    except DataError as error:
        raise store.damaged(path, str(error).rstrip(". "), "file") from error


def _key(config: Config, reader: Reader) -> str:
    task = TaskConfig.of(config.task)
    vocabulary = tokenizer_key(config.tokenizer, "keep_newlines", prepare=reader.prepare)

    def facts(source: Any) -> Any:
        return fingerprint(source, config.data)

    held_out = facts(task.validation) if task.validation else config.data.validation_fraction
    test = facts(task.test) if task.test else ""
    keys = [task.reading(), config.data.on_error]
    every = [FORMAT, facts(task.train), held_out, test, vocabulary, keys, config.data.max_length]
    return hashlib.sha256(json.dumps(every).encode()).hexdigest()[:20]


def _build(
    config: Config, folder: pathlib.Path, reader: Reader, log: Callable[[str], None], labels: Sequence[str] | None
) -> None:
    task = TaskConfig.of(config.task)

    def read(source: Any) -> Any:
        return _read(source, config, reader, log)

    sources = {"train": task.train, "validation": task.validation, "test": task.test}
    parts = reader.resolve({part: read(source) for part, source in sources.items() if source}, log)
    names = reader.label_names(parts["train"]) if labels is None else list(labels)
    if not task.validation:
        parts |= _hold_out(parts["train"], config)
    texts = (text for record in parts["train"] for text in reader.texts(record))
    tokenizer = make_tokenizer(texts, config.tokenizer, folder, log, reader.prepare)
    (folder / "labels.json").write_text(json.dumps(names) + "\n")
    for part, records in parts.items():
        rows = [
            row
            for start in range(0, len(records), _BATCH)
            for row in reader.encode(records[start : start + _BATCH], names, tokenizer)
        ]
        store.write_store(folder / part, (row.parts for row in rows), tokenizer.digest, tokenizer.size, part=part)
        arrays: dict[str, Any] = {"second": np.array([row.second for row in rows], np.int32)}
        if reader.by_token:
            arrays["labels"] = np.concatenate([np.array(row.labels, np.int32) for row in rows])
        else:
            given = np.array([row.labels for row in rows])
            arrays["labels"] = given.astype(np.float32 if given.dtype.kind == "f" else np.int32)
        if len(rows) > len(records):
            arrays["record"] = np.cumsum([row.first for row in rows], dtype=np.int32) - 1
        if rows[0].offsets is not None and part != "train":
            arrays["offsets"] = np.concatenate([row.offsets for row in rows])
        np.savez(folder / f"{part}.npz", **arrays)
        if part != "train" and reader.metadata(records[0]) is not None:
            _write_lines(folder / f"{part}.jsonl", map(reader.metadata, records))
        if part != "train":
            originals = ({"where": record.where, "text": "\n".join(reader.texts(record))} for record in records)
            _write_lines(folder / f"{part}.records.jsonl", originals)
        several = f" as {len(rows):,} rows" if len(rows) > len(records) else ""
        log(f"{part}: {len(records):,} records{several}, {reader.summarize_lengths(rows, tokenizer)}")
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    log(f"labels: {', '.join(names) or reader.unnamed_labels}")


def _write_lines(path: pathlib.Path, objects: Iterable[dict[str, Any] | None]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))


def _read(source: str, config: Config, reader: Reader, log: Callable[[str], None]) -> list[Record]:
    records, task = list(read_records(source, config)), TaskConfig.of(config.task)
    if config.data.on_error == "skip":
        found = len(records)
        records = [record for record in records if reader.is_valid(record)]
        log(f"{source}: {found - len(records):,} of {found:,} records are empty and left out")
    if task.skip_unlabeled:
        found = len(records)
        records = [record for record in records if record.get(task.label_key, "label_key") not in ("", None)]
        log(f"{source}: {found - len(records):,} of {found:,} records have no label and are left out")
    if not records:
        raise DataError(f"{source} holds no records. Give another file in --config.task.train, validation or test.")
    return records


def _hold_out(records: list[Record], config: Config) -> dict[str, list[Record]]:
    """Hold out a fraction of the records, independent of the run's seed; each side gets at least one."""
    if len(records) < 2:
        raise DataError(
            f"{records[0].where} is the only record: nothing is left to hold out. Give config.task.validation."
        )
    draws = stateless_rng.uniform_draw(stateless_rng.example_keys(0, "validation", 0, np.arange(len(records))))
    held = draws < config.data.validation_fraction
    held[draws.argmin()], held[draws.argmax()] = True, False
    return {
        "train": [record for record, out in zip(records, held, strict=True) if not out],
        "validation": [record for record, out in zip(records, held, strict=True) if out],
    }


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], seconds: Sequence[str] | None, max_length: int
) -> Iterator[tuple[list[int], int]]:
    """Encode texts or pairs, cut to max_length: (ids with the family's special tokens, where the second text begins or 0).

    In a pair the longer text is cut first. Our own tokenizers, whose files define no special tokens around texts, use BERT's layout:
    cls, text, sep, second text, sep.
    """
    encoded = tokenizer(
        list(texts),
        None if seconds is None else list(seconds),
        padding=True,
        truncation=True,
        max_length=max_length,
        padding_side="right",
    )
    lengths = encoded["attention_mask"].sum(1)
    types = encoded.get("token_type_ids", np.zeros_like(encoded["input_ids"]))
    for ids, kinds, length in zip(encoded["input_ids"], types, lengths, strict=True):
        yield ids[:length].tolist(), int(kinds.argmax()) if kinds.any() else 0

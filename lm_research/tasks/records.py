"""Readers of labeled records. Each record has its place, so that error messages name the file and line.

The formats are JSON (one object a line, one list of objects a file, or SQuAD's nested form), CSV and TSV with a header, Parquet, column
files (words and tags, see columns.py), two text files with parallel lines, and TensorFlow Datasets.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lm_research.common.documents import json_value, short
from lm_research.config import Config, DataConfig
from lm_research.data import sources
from lm_research.data.sources import aligned, tfds_source
from lm_research.data.sources.files import DAMAGE, SourceFile, find_files
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.records import read_batches, read_rows
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError, suggest
from lm_research.tasks import squad, superglue
from lm_research.tasks.columns import read_columns

_ROWS = 1000  # rows of a Parquet file that are read at once
LONGEST = 2**30  # the limit in characters of a file that is one JSON value
WORDS, TAGS = "tokens", "tags"  # the fields of a sentence in CoNLL columns
SOURCE, TARGET = "source", "target"  # the fields of a pair of lines


class Record(NamedTuple):
    """The fields of one record, and its place, "FILE, line N"."""

    where: str
    fields: dict[str, Any]

    def get(self, key: str, setting: str) -> Any:
        """Look up a field; raise a DataError that names the setting (task.text_key, ...) if the record lacks it.

        If no field has the name "premise.de", it means the field "de" of the field "premise", or the premise itself if that is a text.
        """
        if key not in self.fields:
            outer, _, inner = key.partition(".")
            value = self.fields.get(outer)
            if inner and isinstance(value, str):
                return value
            if inner and isinstance(value, dict):
                return Record(f"{self.where}, {outer}", value).get(inner, setting)
            raise DataError(
                f"{self.where} has no field {key!r}. {suggest(key, self.fields) if self.fields else 'It has none.'} Name the right "
                f"one in --config.task.{setting}."
            )
        return self.fields[key]

    def text(self, key: str, setting: str) -> str:
        """Look up a field that must be a text."""
        value = self.get(key, setting)
        if not isinstance(value, str):
            raise DataError(
                f"{self.where}: field {key!r} is {short(value)}, not a text. Fix it, or name another field in "
                f"--config.task.{setting}."
            )
        return value


def read_records(source: str, config: Config) -> Iterator[Record]:
    """Yield all records of task.train, task.validation or task.test, in order.

    Raises:
      DataError: the source does not exist, or a record cannot be read.
    """
    if source.startswith("tfds:"):
        name = source.removeprefix("tfds:")
        for number, fields in enumerate(tfds_source.read_examples(name, config.data)):
            yield Record(f"{source}, example {number}", fields)
        return
    problems = Problems("stop")
    if aligned.is_aligned(source):
        yield from (Record(where, {SOURCE: a, TARGET: b}) for where, a, b in aligned.read_line_pairs(source, problems))
    else:
        yield from _read_files(source, config, problems)
    problems.print_report(source)


def _read_files(source: str, config: Config, problems: Problems) -> Iterator[Record]:
    columns = (config.task.columns if config.task else None) or ()
    table = functools.partial(_read_table, columns=columns)
    read: dict[str, Callable[[SourceFile, Problems], Iterator[Record]]]
    read = {"json": _read_json, "csv": table, "tsv": table, "parquet": _read_parquet}
    column = config.task.tag_column if config.task else None
    for file in find_files(source):
        if file.kind == "text" or (file.kind == "tsv" and column is not None):  # no table has lists of words
            yield from _read_sentences(file, column or "")
            continue
        if file.kind not in read:
            raise DataError(
                f"{file.path}: labeled records are not read from {file.kind} files. Use .jsonl, .csv or .parquet."
            )
        yield from read[file.kind](file, problems)


def fingerprint(source: str, data: DataConfig) -> object:
    """Compute, without reading them, a value that changes when a source's records do; raise a DataError if the source does not exist."""
    if source.startswith("tfds:"):
        return tfds_source.full_name(source.removeprefix("tfds:"), data)
    if aligned.is_aligned(source):
        return aligned.fingerprint(source)
    return sources.fingerprint(source, data)


def _read_json(file: SourceFile, problems: Problems) -> Iterator[Record]:
    lines = ((number, line) for number, line in read_lines(file, problems) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):  # one list in the whole file
        try:
            records = json_value(
                _joined(first, lines, file), on_surrogates=functools.partial(problems.surrogates, str(file.path))
            )
        except ValueError as error:
            raise DataError(f"{file.path} begins like a JSON list but is not one ({error}). Fix it.") from error
        for number, fields in enumerate(records, 1):
            yield Record(f"{file.path}, record {number}", _object(fields, f"{file.path}, record {number}"))
    elif not first[1].lstrip().startswith("{") or first[1].rstrip().endswith("}"):
        for number, line in itertools.chain([first], lines):
            where = f"{file.path}, line {number}"
            try:
                fields = _object(json_value(line, on_surrogates=functools.partial(problems.surrogates, where)), where)
            except ValueError as error:
                raise DataError(f"{where} is not JSON ({error}). Write one JSON object a line.") from error
            whole = squad.is_nested(fields) and "data" in fields  # squad.flatten adds the places within the file
            yield from _expand(fields, str(file.path) if whole else where)
    else:  # one object in the whole file, as SQuAD's
        try:
            document = json_value(
                _joined(first, lines, file), on_surrogates=functools.partial(problems.surrogates, str(file.path))
            )
        except ValueError as error:
            raise DataError(
                f"{file.path} begins like one JSON object but is not one ({error}). Fix it, or write one object a line."
            ) from error
        yield from _expand(_object(document, str(file.path)), str(file.path))


def _joined(first: tuple[int, str], lines: Iterator[tuple[int, str]], file: SourceFile) -> str:
    """Join all lines of a file that is one JSON value."""
    found, size = [], 0
    for number, line in itertools.chain([first], lines):
        found.append(line)
        size += len(line)
        if size > LONGEST:
            raise DataError(
                f"{file.path}, line {number}: a JSON value must be read as a whole, and this one exceeds {LONGEST // 2**20} MiB. Write one "
                f"object a line (for a list, with `jq -c '.[]' {file.path}`)."
            )
    return "".join(found)


def _expand(fields: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield the records that an object contains, or the object itself as one."""
    read = squad.flatten if squad.is_nested(fields) else superglue.expand
    yield from (Record(*found) for found in read(fields, where))


def _object(fields: Any, where: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise DataError(f"{where} holds a JSON {type(fields).__name__}, not an object with named fields. Fix it.")
    return fields


def _read_table(file: SourceFile, problems: Problems, columns: Sequence[str]) -> Iterator[Record]:
    names, rows = read_rows(file, problems, columns)
    for number, cells in rows:
        yield Record(f"{file.path}, line {number}", dict(zip(names, cells, strict=True)))


def _read_parquet(file: SourceFile, problems: Problems) -> Iterator[Record]:
    import pyarrow

    try:
        with file.open() as stream:
            number = 0
            for batch in read_batches(stream, None, _ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{file.path}, row {number}", fields)
    except (pyarrow.ArrowException, *DAMAGE, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file.path} is not a Parquet file, or damaged ({error}). Copy it again.") from error


def _read_sentences(file: SourceFile, column: str) -> Iterator[Record]:
    for sentence in read_columns(file, column):
        yield Record(f"{file.path}, line {sentence.line}", {WORDS: sentence.words, TAGS: sentence.tags})

"""Files of records with the text in one field: JSON lines, tables, Parquet and ArrayRecord."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from lm_research.common.disk import with_filename
from lm_research.common.documents import json_value
from lm_research.data.sources.files import DAMAGE, SourceFile, unpacks_too_far
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError, suggest

_RECORDS = 1000  # read at once
# Characters; csv's own limit is 2**17. An unclosed quote would otherwise include the rest of the file.
_LONGEST_CELL = 2**25
_RETURN = "\udc0d"  # replaces carriage returns, at which csv would end a row; it cannot occur in UTF-8


def read_json_lines(file: SourceFile, key: str | None, problems: Problems) -> Iterator[str]:
    """Read the text of each line, which is a JSON object (its field `key`, or "text") or a JSON string."""
    for number, line in read_lines(file, problems):
        if not line.strip():
            continue
        where = f"{file.path}, line {number}"
        try:
            record = json_value(line, on_surrogates=functools.partial(problems.surrogates, where))
        except ValueError as error:
            problems.found(
                f"{where} is not JSON ({error})",
                f"Write one JSON object per line (`jq -c '.[]' {file.path}` does that for a list)",
            )
            continue
        text = record if isinstance(record, str) else _field(record, key or "text", where, problems)
        if text is not None:
            yield text


def _field(record: Any, key: str, where: str, problems: Problems) -> str | None:
    """Return record[key] if it is a text; otherwise report a problem."""
    if not isinstance(record, dict):
        problems.found(f"{where} has a JSON {type(record).__name__}, not an object", "Write one JSON object per line")
    elif key not in record:
        fields = ", ".join(map(str, record)) or "none"
        problems.found(
            f"{where} has no field {key!r}; its fields: {fields}", "Set data.text_key to the field with the text"
        )
    elif not isinstance(record[key], str):
        kind = type(record[key]).__name__
        problems.found(
            f"{where}: field {key!r} is of type {kind}, not a text", "Set data.text_key to the field with the text"
        )
    else:
        return record[key]
    return None


def read_table(file: SourceFile, key: str | None, problems: Problems) -> Iterator[str]:
    """Read one column of a table whose first row names the columns; see `read_rows`."""
    names, rows = read_rows(file, problems)
    column = _choose(names, key, str(file.path), "column") if names else 0
    yield from (row[column] for _, row in rows)


def read_rows(
    file: SourceFile, problems: Problems, columns: Sequence[str] = ()
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Read the column names and rows of a CSV file (quoted as in RFC 4180) or a TSV file (never quoted).

    Args:
      file: the table.
      problems: collects rows with too few or too many cells.
      columns: names of the first columns of a table without a header line; further cells are dropped. () reads the names.

    Returns:
      The names, and (number of its first line, cells) of each row after them. Empty lines are skipped; a line break inside quotes
      becomes a line feed.
    """
    rows = (_tsv_rows if file.kind == "tsv" else _csv_rows)(file, problems)
    if columns:
        names, header = list(columns), "config.task.columns names"
        rows = ((number, cells[: len(names)]) for number, cells in rows)
    else:
        (_, names), header = next(rows, (0, [])), "the first row has"

    def is_valid(number: int, cells: list[str]) -> bool:
        if len(cells) != len(names):
            found = f"{file.path}, line {number} has {len(cells)} columns, but {header}"
            problems.found(f"{found} {len(names)}: {', '.join(names)}")
        return len(cells) == len(names)

    return names, (row for row in rows if is_valid(*row))


def _tsv_rows(file: SourceFile, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(file, problems):
        if cells := line.removesuffix("\n"):
            yield number, cells.split("\t")


def _csv_rows(file: SourceFile, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_LONGEST_CELL)
    numbers = [0]  # number of the line that csv read last

    def lines() -> Iterator[str]:
        for numbers[0], line in read_lines(file, problems):
            yield line.replace("\r", _RETURN)

    rows = csv.reader(lines(), strict=True)
    while True:
        first = numbers[0] + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            problems.found(f"{file.path}, line {first} is not a row of a table ({error})", "Fix its quotes")
            continue
        if cells is None:
            return
        if cells:
            yield first, [cell.replace(_RETURN, "\r") for cell in cells]


def _choose(names: list[str], key: str | None, where: str, what: str) -> int:
    """Find the index of `key`, by default of "text" or the only name.

    Raises:
      DataError: there is no such name.
    """
    name = key or ("text" if "text" in names or len(names) != 1 else names[0])
    if name in names:
        return names.index(name)
    hint = suggest(name, names) if names else "It has none."
    raise DataError(f"{where} has no {what} {name!r}: set config.data.text_key. {hint}")


def read_parquet(file: SourceFile, key: str | None, problems: Problems) -> Iterator[str]:
    """Read one column of texts of a Parquet file, by default "text" or the only one of that type."""
    import pyarrow
    from pyarrow import parquet

    try:
        with file.open() as stream:
            schema = parquet.ParquetFile(stream).schema_arrow
            texts = [
                field.name
                for field in schema
                if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
            ]
            column = texts[_choose(texts, key, str(file.path), "column of texts")]
            number = 0
            for batch in read_batches(stream, [column], _RECORDS):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if text is None:
                        problems.found(f"{file.path}, row {number}: {column!r} is null")
                    else:
                        yield text
    except (pyarrow.ArrowException, *DAMAGE, OSError, ValueError, OverflowError) as error:
        problems.found(f"{file.path} is not a Parquet file, or damaged ({_words(error)})", "Copy it again")


def read_batches(stream: IO[bytes], columns: list[str] | None, size: int) -> Iterator[Any]:
    """Read record batches of a Parquet file; raises a ValueError if the compression ratio of a row group is too high for real data."""
    from pyarrow import parquet

    packed, table = stream.seek(0, io.SEEK_END), parquet.ParquetFile(stream)
    for group in range(table.num_row_groups):
        unpacked = table.metadata.row_group(group).total_byte_size  # damaged column metadata would crash the process
        if unpacks_too_far(unpacked, packed):
            raise ValueError(f"a row group unpacks to {unpacked:,} bytes, which is not plausible for data")
        yield from table.iter_batches(batch_size=size, row_groups=[group], columns=columns)


def read_array_record(file: SourceFile, key: str | None, problems: Problems) -> Iterator[str]:
    """Read the records of an ArrayRecord file: UTF-8 texts; with `key`, JSON objects or tf.train.Examples with that field."""
    try:
        with _local(file) as path:
            yield from _read_local(path, file, key, problems)
    except (*DAMAGE, OSError) as error:
        problems.found(
            f"{file.path} cannot be read: {_words(error)}", "Use a complete file that you are allowed to read"
        )


def _read_local(path: pathlib.Path, file: SourceFile, key: str | None, problems: Problems) -> Iterator[str]:
    from array_record.python import array_record_module

    number = 0
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        if not reader.ok():
            reader.close()  # raises the error
        for start in range(0, reader.num_records(), _RECORDS):
            stop = min(start + _RECORDS, reader.num_records())
            for number, record in enumerate(reader.read(list(range(start, stop))), start):
                text = _text_of_record(record, key, f"{file.path}, record {number}", problems)
                if text is not None:
                    yield text
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        problems.found(
            f"{file.path} is not an ArrayRecord file, or damaged after record {number} ({_words(error)})",
            "Copy it again",
        )


def _text_of_record(record: bytes, key: str | None, where: str, problems: Problems) -> str | None:
    try:
        if not key:
            return record.decode("utf-8")
        if record.lstrip().startswith(b"{"):
            return _field(
                json_value(record, on_surrogates=functools.partial(problems.surrogates, where)), key, where, problems
            )
        features = _example_features(record)
        if key not in features:
            problems.found(f"{where} has no feature {key!r}; its features: {', '.join(features) or 'none'}")
            return None
        return features[key].decode("utf-8")
    except UnicodeDecodeError as error:
        problems.found(
            f"{where} is not UTF-8 ({error.reason} at byte {error.start})", "Set data.text_key to a field of the record"
        )
    except (ValueError, IndexError) as error:
        problems.found(f"{where} is neither JSON nor a tf.train.Example ({error})")
    return None


def _example_features(record: bytes) -> dict[str, bytes]:
    """Parse a serialized tf.train.Example; returns the first value of each bytes feature.

    Its messages: Example {Features features = 1}, Features {map<string, Feature> feature = 1}, with entries {string key = 1,
    Feature value = 2}, and Feature {BytesList bytes_list = 1}, BytesList {repeated bytes value = 1}.
    """
    found: dict[str, bytes] = {}
    for features in _submessages(record).get(1, []):
        for entry in _submessages(features).get(1, []):
            fields = _submessages(entry)
            name, value = fields.get(1, [b""])[0].decode("utf-8"), fields.get(2, [b""])[0]
            for values in _submessages(value).get(1, []):
                found[name] = _submessages(values).get(1, [b""])[0]
    return found


def _submessages(message: bytes) -> dict[int, list[bytes]]:
    """Parse the length-delimited fields of a Protocol Buffers message: field number -> values. Other fields are skipped."""
    fields: dict[int, list[bytes]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 2:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise ValueError("it ends inside a field")
            fields.setdefault(tag >> 3, []).append(message[place : place + size])
            place += size
        elif kind == 0:
            _, place = _varint(message, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"it has a field of type {kind}")
    return fields


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("it has a number with more than 64 bits")


@contextlib.contextmanager
def _local(file: SourceFile) -> Iterator[pathlib.Path]:
    """Provide a local, uncompressed path of a file: its own, or that of a temporary copy."""
    if isinstance(file.path, pathlib.Path) and file.path.suffix not in (".gz", ".bz2", ".xz"):
        file.open().close()  # fails for a pipe, on which the libraries would block
        yield file.path
        return
    with tempfile.NamedTemporaryFile(suffix=".array_record") as copy, with_filename(copy.name):
        with file.open() as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        yield pathlib.Path(copy.name)


def _words(error: Exception) -> str:
    text = " ".join(str(isinstance(error, OSError) and error.strerror or error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."

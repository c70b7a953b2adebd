"""Corpora in a bucket: data.cache_dir may be a gs:// or s3:// address.

A store is read by mapping its files into memory, which only local files can be. So a corpus is copied here once, whole, and
opened there in milliseconds ever after; one that is made here is copied there. A list of its files with their sizes, written last,
says that all of a copy has arrived.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Meta

from lm_research.common.disk import atomic_folder
from lm_research.common.documents import parse_json, short
from lm_research.common.paths import path_of, stays_inside
from lm_research.data.sources.files import DRIVERS, is_remote
from lm_research.errors import DataError

LIST = "files.json"
_PIECE = 16 * 2**20  # bytes copied at once
_Bytes = Annotated[int, Meta(ge=0)]


def corpora(cache_dir: str | None, workdir: pathlib.Path) -> pathlib.Path:
    """The local folder that a run's corpora lie in: that of the config, the run's own, or the copies of a bucket's."""
    if cache_dir and is_remote(cache_dir):
        return copies() / cache_dir.replace("://", "/").rstrip("/")
    return path_of(cache_dir, "config.data.cache_dir", error=DataError) if cache_dir else pathlib.Path(workdir) / "data"


def copies() -> pathlib.Path:
    """Where copies of what lies in buckets are kept: LM_RESEARCH_CACHE, or ~/.cache/lm_research/corpora."""
    return path_of(
        os.environ.get("LM_RESEARCH_CACHE") or "~/.cache/lm_research/corpora", "LM_RESEARCH_CACHE", error=DataError
    )


def find_or_build(
    cache_dir: str | None, workdir: pathlib.Path, key: str, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """The local folder of a corpus; fetches it from the bucket, or builds it and leaves a copy there.

    Args:
      cache_dir: config.data.cache_dir.
      workdir: of the run.
      key: the name of the folder, which tells its content.
      build: makes the folder, all at once.

    Raises:
      DataError: the bucket cannot be reached or written, and whatever `build` raises.
    """
    folder = corpora(cache_dir, workdir) / key
    if folder.is_dir():
        return folder
    if not cache_dir or not is_remote(cache_dir):
        build(folder)
    elif not _fetch(f"{cache_dir.rstrip('/')}/{key}", folder):
        build(folder)
        _leave(folder, f"{cache_dir.rstrip('/')}/{key}")
    return folder


def local_folder(address: str) -> pathlib.Path:
    """A corpus or store by its folder or address, copied here if need be; raises a DataError where there is none."""
    if not is_remote(address):
        return path_of(address, "The folder", error=DataError)
    folder = copies() / address.replace("://", "/").rstrip("/")
    if not folder.is_dir() and not _fetch(address, folder):
        raise DataError(
            f"{address} holds no whole corpus: it has no {LIST}. Check the address, or prepare it there again."
        )
    return folder


def _fetch(address: str, folder: pathlib.Path) -> bool:
    """Copies a corpus here; False if there is none, or not all of it."""
    remote = _path(address)
    with _Guard(address):
        if not (remote / LIST).exists():
            return False
        listed = (remote / LIST).read_bytes()
    sizes = parse_json(listed, f"{address}/{LIST}", dict[str, _Bytes], fix=f"Delete {address}; it is made again.")
    for name in sizes:
        if not stays_inside(name):
            raise DataError(
                f"{address}/{LIST} lists the file {short(name)}, which is outside of the corpus, so nothing was copied. Check who can write "
                f"to {address}, and delete it; it is made again."
            )
    with atomic_folder(folder) as temporary:
        for name, size in sizes.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with _Guard(address), (remote / name).open("rb") as source, (temporary / name).open("wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
            found = (temporary / name).stat().st_size
            if found != size:
                raise DataError(
                    f"{address}/{name} has {found:,} bytes instead of {size:,}. Delete {address}; it is made again."
                )
    return True


def _leave(folder: pathlib.Path, address: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    remote, sizes = _path(address), {}
    with _Guard(address):
        for path in files:
            name = path.relative_to(folder).as_posix()
            (remote / name).parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, (remote / name).open("wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
            sizes[name] = path.stat().st_size
        (remote / LIST).write_text(json.dumps(sizes, indent=1) + "\n")


def _path(address: str) -> Any:
    from etils import epath

    return epath.Path(address)


class _Guard:
    """Says in one paragraph what a bucket's client raises in many ways."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ImportError):
            driver = DRIVERS[self.address.partition(":")[0]]
            raise DataError(
                f"config.data.cache_dir={self.address} is in a bucket, which needs the package {driver}. Install it with `pip install "
                f"{driver}`, or name a local folder."
            ) from error
        if isinstance(error, Exception) and not isinstance(error, DataError):
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(
                f"The corpora at {self.address} cannot be read or written: {words}. Check the address and your access."
            ) from error

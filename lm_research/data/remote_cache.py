"""Remote corpora: data.cache_dir may be a gs:// or s3:// address.

A store is read by mapping its files into memory, which requires local files. So a corpus in a bucket is downloaded once, without
its tokens, which are fetched as they are read (block_tokens.py), and later opened from the local copy in milliseconds; a corpus that
is built locally is uploaded. A list of its files with their sizes is written last and marks a complete copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from lm_research.common import buckets
from lm_research.common.disk import atomic_folder, reporting_disk_errors
from lm_research.common.documents import parse_json, short
from lm_research.common.paths import is_remote, path_of, stays_inside
from lm_research.data.block_tokens import ADDRESS
from lm_research.data.store import block_digests, read_manifest
from lm_research.errors import DataError

LIST = "files.json"
_Bytes = Annotated[int, Meta(ge=0)]


def corpora_folder(cache_dir: str | None, workdir: pathlib.Path) -> pathlib.Path:
    """Return the local folder of a run's corpora: data.cache_dir, its local copy if that is in a bucket, or WORKDIR/data."""
    cache_dir = _remote_data(cache_dir, workdir)
    if cache_dir and is_remote(cache_dir):
        return cache_root() / cache_dir.replace("://", "/").rstrip("/")
    return path_of(cache_dir, "config.data.cache_dir", error=DataError) if cache_dir else pathlib.Path(workdir) / "data"


def _remote_data(cache_dir: str | None, workdir: pathlib.Path) -> str | None:
    """Return data.cache_dir, or the data/ of a run directory in a bucket."""
    return cache_dir or (f"{workdir}/data" if is_remote(str(workdir)) else None)


def cache_root() -> pathlib.Path:
    """Return the folder for copies of remote corpora: LM_RESEARCH_CACHE, or ~/.cache/lm_research/corpora."""
    return path_of(
        os.environ.get("LM_RESEARCH_CACHE") or "~/.cache/lm_research/corpora", "LM_RESEARCH_CACHE", error=DataError
    )


def find_or_build(
    cache_dir: str | None, workdir: pathlib.Path, key: str, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Return the local folder of a corpus, after downloading it from the bucket without its tokens, or building and uploading it.

    Args:
      cache_dir: config.data.cache_dir.
      workdir: the run's folder.
      key: name of the corpus's folder, a digest of its ingredients.
      build: creates the folder atomically; its errors are passed on.

    Raises:
      DataError: the bucket cannot be reached or written.
    """
    cache_dir = _remote_data(cache_dir, workdir)
    folder = corpora_folder(cache_dir, workdir) / key
    if folder.is_dir():
        return folder
    if not cache_dir or not is_remote(cache_dir):
        build(folder)
    elif not _download(f"{cache_dir.rstrip('/')}/{key}", folder):
        with _reporting(remote := _path(cache_dir)):
            buckets.check_writable(remote)
        build(folder)
        _upload(folder, f"{cache_dir.rstrip('/')}/{key}")
    return folder


def local_folder(address: str) -> pathlib.Path:
    """Return the local folder of a corpus or store, downloading it if necessary; raises a DataError if there is none."""
    if not is_remote(address):
        return path_of(address, "The folder", error=DataError)
    folder = cache_root() / address.replace("://", "/").rstrip("/")
    if not folder.is_dir() and not _download(address, folder):
        raise DataError(
            f"{address} is not a complete corpus: it has no {LIST}. Check the address, or prepare the corpus again."
        )
    return folder


def _download(address: str, folder: pathlib.Path) -> bool:
    """Download a corpus without its tokens; returns False if there is none, or it is incomplete."""
    remote = _path(address)
    with _reporting(remote):
        try:
            listed = buckets.read(remote / LIST)
        except FileNotFoundError:
            return False
    fix = f"Delete {address}; the next run rebuilds it."
    sizes = parse_json(listed, f"{address}/{LIST}", dict[str, _Bytes], fix=fix)
    for name in sizes:
        if not stays_inside(name):
            raise DataError(
                f"{address}/{LIST} lists the file {short(name)}, which is outside of the corpus, so nothing was copied. Check who can write "
                f"to {address}, and delete it; the next run rebuilds it."
            )
    with atomic_folder(folder) as temporary:
        later = {name for name in sizes if pathlib.PurePosixPath(name).name == "tokens.bin"}
        with _reporting(remote):
            buckets.download({remote / name: temporary / name for name in sizes if name not in later})
            in_blocks = {name for name in later if _is_in_blocks((temporary / name).parent)}
            buckets.download({remote / name: temporary / name for name in later - in_blocks})
            found_sizes = {name: buckets.size(remote / name) for name in in_blocks}
        for name in in_blocks:
            (temporary / name).touch()
            os.truncate(temporary / name, sizes[name])
            (temporary / name).with_name(ADDRESS).write_text(f"{remote}/{name}\n", encoding="utf-8")
        for name, size in sizes.items():
            found = found_sizes.get(name, (temporary / name).stat().st_size)
            if found != size:
                raise DataError(f"{address}/{name} has {found:,} bytes instead of {size:,}. {fix}")
    return True


def _is_in_blocks(folder: pathlib.Path) -> bool:
    """Whether a store's manifest has the digests by which its tokens are read from the bucket; damage is reported when it is opened."""
    try:
        return bool(block_digests(folder, read_manifest(folder))[1])
    except DataError:
        return False


def _upload(folder: pathlib.Path, address: str) -> None:
    sizes, remote = {}, _path(address)
    with _reporting(remote):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            buckets.upload(path, remote / name)
            sizes[name] = path.stat().st_size
        buckets.write(remote / LIST, (json.dumps(sizes, indent=1) + "\n").encode())


def _path(address: str) -> pathlib.Path:
    return buckets.remote_path(address, error=DataError)


def _reporting(remote: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return reporting_disk_errors(lambda: "", remote)

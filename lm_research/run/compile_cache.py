"""The cache of compiled programs, which all runs of a user share, and the commands that use models.

Programs that took longer than half a second to compile are stored, and loaded by any later run that needs the same program for the same
devices, with the same versions. The variable JAX_COMPILATION_CACHE_DIR chooses the folder, which may be at gs:// (several machines can
share it), and an empty value turns the cache off; otherwise it is lm_research/xla in the user's cache folder. Several processes may use
it at once: an entry that another process has not written to its end is compiled again.

JAX does not write entries atomically. One whose writer was killed is compiled again in every run, with a warning, and JAX never replaces
it. So runs remove it from a local folder; in buckets objects appear whole.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Mapping

import jax

from lm_research.common.paths import as_path, is_remote

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = 0.5  # of compiling; shorter programs are not worth a file
_WRITING = 60.0  # seconds that an entry may take to be written
_CHECKED = ".checked"  # the file whose time is that of the last search for cut entries


def warn(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr)


def cache_folder(environment: Mapping[str, str] = os.environ) -> str:
    """Return the folder of compiled programs, a path or an address; "" for no cache."""
    if VARIABLE in environment:
        return environment[VARIABLE]
    folder = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):  # which the specification of that variable tells to ignore
        home = os.path.expanduser("~")
        if home == "~":  # users without a home
            return ""
        folder = os.path.join(home, ".cache")
    return os.path.join(folder, "lm_research", "xla")


def use_compile_cache(log: Callable[[str], None] = warn, writes: bool = True) -> None:
    """Let JAX keep compiled programs in `cache_folder`; without a folder that can be used, log why and compile each time.

    Args:
      log: for the line.
      writes: whether this process stores programs, as only the first of a run does.
    """
    folder = cache_folder()
    problem = _problem(folder, writes) if folder else ""
    if problem:
        log(
            f"compile cache: {folder} cannot be used ({problem}), so each run compiles its programs again; {VARIABLE} names another folder"
        )
    jax.config.update("jax_compilation_cache_dir", "" if problem else folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)


def _problem(folder: str, writes: bool) -> str:
    """Say why a folder cannot be used; "" if it can. JAX would warn once per program instead."""
    try:
        path = as_path(folder)
        if not writes:
            path.exists()
            return ""
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
        if not is_remote(path):
            _remove_cut_entries(path)
    except Exception as error:  # whatever a client of a bucket raises
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def _remove_cut_entries(folder: pathlib.Path) -> None:
    """Remove entries, of those written since the last call, whose compressed content is not complete."""
    mark, latest = folder / _CHECKED, time.time() - _WRITING
    earliest = mark.stat().st_mtime - _WRITING if mark.exists() else 0.0
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another run removes it too, or it is another user's
            if earliest <= entry.stat().st_mtime < latest and _is_cut(entry.read_bytes()):
                entry.unlink()
    mark.touch()


def _is_cut(content: bytes) -> bool:
    if content[:1] not in (b"", b"\x78"):  # not of zlib: JAX compresses by zstandard where that is installed
        return False
    reader = zlib.decompressobj()
    try:
        reader.decompress(content)
    except zlib.error:
        return True
    return not reader.eof

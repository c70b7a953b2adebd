"""The cache of compiled programs, which all runs of a user share.

Programs that took longer than half a second to compile are stored, and loaded by any later run that needs the same program for the same
devices, with the same versions. The variable JAX_COMPILATION_CACHE_DIR chooses the folder, which may be at gs:// (several machines can
share it), and an empty value turns the cache off; otherwise it is lm_research/xla in the user's cache folder. Several processes may use
it at once: an entry that another process has not written to its end is compiled again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping

import jax

from lm_research.common.paths import as_path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = 0.5  # of compiling; shorter programs are not worth a file


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


def use_compile_cache(log: Callable[[str], None], writes: bool) -> None:
    """Let JAX keep compiled programs in `cache_folder`; without a folder that can be used, log why and compile each time.

    Args:
      log: of the run.
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
    except Exception as error:  # whatever a client of a bucket raises
        return f"{type(error).__name__}: {error}"[:200]
    return ""

"""The run directory: everything needed to explain, resume or repeat a run.

config.json       the resolved config; usable as --config
environment.json  versions, devices, git commit, number of parameters, command, changed keys and compiler options of each start
metrics.jsonl     one object a line, units in the names
log.txt           what was printed
summary.json      at the end: status, steps, final metrics, digests of the state, where the time went
time.json         the time of each start, by cause
budget.json       the steps planned with a budget of time
checked.json      the last step that train.check_every found nothing in
local_checkpoints.json  the run's id in checkpoint.local_directory
trackers.json     the run's ids at Weights & Biases and MLflow
checkpoints/ data/ tensorboard/ profile/ nonfinite/; damaged files are kept in checkpoints/damaged/ and *.damaged

In a bucket, checkpoints/ and data/ are written there, and the other files in a local folder that is copied to it (common/bucket_copies.py), as are
checkpoints at s3:// (checkpoint_copy.py); lease.py is its lock.
"""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from typing import IO, Any

import jax

from lm_research import config as config_lib
from lm_research.common import buckets
from lm_research.common.disk import describe_os_error, write_atomically
from lm_research.common.documents import Object, read_json
from lm_research.common.paths import FILE, FOLDER, LINK_TO_NOTHING, NOTHING, is_remote, kind
from lm_research.config.run_files import read_whole_config
from lm_research.errors import CheckpointError, DataError, UserError
from lm_research.parallel import exchange
from lm_research.run.lease import Lease

# Changing these keys between restarts changes how a run is watched, saved or limited, not what it computes.
FREE_KEYS = (
    "logging.",
    "checkpoint.",
    "eval.",
    "profile.",
    "data.num_workers",
    "data.cache_dir",
    "data.verify",
    "train.on_nonfinite",
    "mesh.",
    "model.remat",
    "xla.",
    "train.stop_after",
    "train.check_every",
    "train.max_epochs",
    "data.max_words",
    "plugins",
)
# Changing these keys changes where a run ends; see extension.py.
LENGTH_KEYS = ("train.num_steps", "train.num_epochs", "train.budget", "task.patience")
# Changing this key changes the rounding of products from then on: a run may end in full precision.
ROUNDING_KEYS = ("train.quantization",)
_checks = itertools.count()  # of `check_shared`
_SHARED_SECONDS = 20.0  # for a file that another host wrote to appear
_OPENED = (".lock", "log.txt", "metrics.jsonl")
Changes = dict[str, tuple[Any, Any]]  # dotted key -> (old, new)
PACKAGES = (
    "lm_research",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "tensorflow-datasets",
    "numpy",
    "qwix",
)


def first_free_path(path: pathlib.Path) -> pathlib.Path:
    """Find the first of PATH, PATH-2, PATH-3, ... that does not exist."""
    places = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not (place.exists() if is_remote(place) else os.path.lexists(place)))


def keep_damaged(path: pathlib.Path) -> pathlib.Path:
    """Copy an unreadable file to PATH.damaged before it is replaced, or move it if it is not a regular file; return the new path."""
    kept = first_free_path(path.with_name(f"{path.name}.damaged"))
    if kind(path) == FILE:
        shutil.copyfile(path, kept)
    else:
        os.rename(path, kept)
    return kept


def lock(workdir: pathlib.Path, flag: str = "--workdir") -> IO[str] | Lease:
    """Lock the directory, which `flag` named, for this process until the handle is closed or the process ends.

    Raises:
      CheckpointError: the directory cannot be written, or another run is using it.
    """
    if is_remote(workdir):
        try:
            return Lease(workdir, flag)
        except UserError:
            raise
        except Exception as error:  # of any class of the bucket's client
            fix = buckets.FIXES[buckets.errno_of(error)]
            raise CheckpointError(f"{flag}={workdir} cannot be written: {buckets.reason(error)}. {fix}.") from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name in _OPENED:  # opening a pipe would block
            if (found := kind(workdir / name)) not in (FILE, NOTHING, LINK_TO_NOTHING):
                found = "a folder" if found == FOLDER else found
                raise CheckpointError(f"{workdir / name} is {found}, where {flag} keeps a file. Move it away.")
        handle = open(workdir / ".lock", "w")
    except OSError as error:
        raise CheckpointError(
            f"{flag}={workdir} cannot be written: {describe_os_error(error, workdir)}. Choose another directory, or fix that."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise CheckpointError(
            f"{flag}={workdir} is in use by another running process. Wait for it, stop it, or choose another {flag}."
        ) from error
    return handle


def check_shared(workdir: pathlib.Path) -> None:
    """Check that all processes of the run see one directory; with others, they would wait for each other at a save. All must call this.

    Raises:
      CheckpointError: in every process, if some see another directory, or none.
    """
    if jax.process_count() == 1:
        return
    if not buckets.takes_arrays(workdir):
        raise CheckpointError(
            f"--workdir={workdir} takes runs of one process only, and this one has {jax.process_count()}: at s3:// each checkpoint is copied from "
            "the machine that wrote it, and each process has only its own part. Give a directory on storage that all hosts mount (s3fs, NFS), or "
            "gs://BUCKET/RUN."
        )
    number, key = jax.process_index(), f"shared/{next(_checks)}"
    name = exchange.share_texts(f"{key}/name", f".shared-{uuid.uuid4().hex}" if number == 0 else "")[0]
    seen = f"{workdir} on {socket.gethostname()}"
    if number == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_bytes(b"")
        exchange.share_texts(f"{key}/written", "")
        seen = ""
    else:
        exchange.share_texts(f"{key}/written", "")
        deadline = time.monotonic() + _SHARED_SECONDS
        while seen and time.monotonic() < deadline:
            seen = "" if (workdir / name).exists() else seen
            time.sleep(0.1 if seen else 0)
    others = {one: text for one, text in enumerate(exchange.share_texts(f"{key}/seen", seen)) if text}
    if number == 0:
        (workdir / name).unlink(missing_ok=True)
    if others:
        first, where = next(iter(others.items()))
        more = f", and {len(others) - 1} more processes" if len(others) > 1 else ""
        raise CheckpointError(
            f"The processes of this run do not share one --workdir: process {first} ({where}{more}) does not see the file that process 0 wrote "
            "into its own. Give all of them the same directory, on storage that all hosts mount or in a bucket (gs://BUCKET/RUN)."
        )


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Find every key whose value differs between two resolved configs."""
    old, new = config_lib.by_key(old), config_lib.by_key(new)
    return {name: (old.get(name), new.get(name)) for name in sorted(old | new) if old.get(name) != new.get(name)}


def check_config(workdir: pathlib.Path, config: config_lib.Config) -> Changes:
    """Find the keys that have changed since the run's last start; raise a CheckpointError if one changes what the run computes.

    Keys that are newer than the run count as their defaults, which is how earlier versions behaved.
    """
    path = workdir / "config.json"
    if not path.exists():
        return {}
    current, obsolete = read_whole_config(path)
    changed = changed_keys(current | obsolete, config_lib.to_dict(config))
    others = {
        name: pair for name, pair in changed.items() if not name.startswith(FREE_KEYS + LENGTH_KEYS + ROUNDING_KEYS)
    }
    if others:
        listed = "; ".join(f"{name} was {before!r}, is {now!r}" for name, (before, now) in others.items())
        raise CheckpointError(
            f"--workdir={workdir} holds another run, whose config differs: {listed}. Choose a new --workdir, or resume that run with "
            f"--config={path}."
        )
    return changed


def store_config(workdir: pathlib.Path, config: config_lib.Config, files: pathlib.Path | None = None) -> Changes:
    """Check config.json again, now that the number of steps is resolved, and write it, into `files` if given; return what changed."""
    changed = check_config(workdir, config)
    write_atomically((files or workdir) / "config.json", config_lib.dumps(config))
    return changed


def record_environment(
    workdir: pathlib.Path, num_params: int, changed: Changes | None = None, options: Mapping[str, str] | None = None
) -> None:
    """Add this start to environment.json (a list with one entry per start).

    Args:
      workdir: the run directory.
      num_params: size of the model.
      changed: keys of the config that have changed.
      options: the compiler's options.
    """
    path = workdir / "environment.json"
    try:
        starts = read_json(path, list[Object]) if path.exists() else []
    except DataError:
        starts = []
        keep_damaged(path)
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    starts.append(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.orig_argv[1:]],
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions,
            "git_commit": _git_commit(),
            "parameters": num_params,
            "changed": {name: list(pair) for name, pair in (changed or {}).items()},
            "devices": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
            "processes": jax.process_count(),
            "cpu_count": os.cpu_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "compiler_options": dict(options or {}),
        }
    )
    write_atomically(path, json.dumps(starts, indent=1) + "\n")


def _git_commit() -> str | None:
    """Return the commit of the source that runs, with "+changes" if files differ; None outside a checkout."""
    where = pathlib.Path(__file__).parent
    try:

        def run(*args: str) -> str:
            return subprocess.run(
                ["git", "-C", str(where), *args], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()

        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None

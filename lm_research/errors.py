"""Errors that users can fix, each with a one-paragraph message (what, where, the fix), and exit codes.

A `UserError` ends a command with exit code 2 and without a traceback (`--debug` shows it). Bugs are asserts, which keep their
traceback and end with exit code 1.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

# Exit codes of all commands.
DONE = 0
BUG = 1
USER_ERROR = 2
NON_FINITE_LOSS = 3
DEVICE_FAULT = 4
STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL: the work is saved, and the same command continues it

_MAX_MESSAGE = 4000  # characters

# Flags of a run that do not affect its corpus.
_NON_CORPUS_FLAGS = (
    "--debug",
    "--coordinator=",
    "--num_processes=",
    "--process_id=",
    "--config.logging.",
    "--config.eval.",
    "--config.checkpoint.",
    "--config.profile.",
    "--config.mesh.",
    "--config.data.verify=",
    "--config.data.num_workers=",
)


class UserError(Exception):
    """An error that the user can fix; `str(error)` is the message.

    Messages may quote files, so the middle of a long one is omitted, and unprintable characters, which could move a terminal's cursor,
    become question marks.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE * 3 // 4]} [...] {message[-_MAX_MESSAGE // 4 :]}"
        super().__init__("".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in message))

    exit_code = USER_ERROR


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class DataError(UserError):
    """A corpus, data set or token store that cannot be read."""


class DamagedStore(DataError):
    """A store, or a file next to it, has changed since it was written; `folder` is that of its corpus."""

    def __init__(self, message: str, folder: pathlib.Path) -> None:
        super().__init__(message)
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, from worker processes to the one that reads their batches."""
        return DamagedStore, (str(self), self.folder)


class TokenizerError(UserError):
    """A tokenizer that cannot be trained, loaded or used with this model."""


class UnsupportedTokenizerError(TokenizerError):
    """A tokenizer class that is not supported, of a model that may be."""


class MeshError(UserError):
    """Devices that cannot be arranged, or arrays that cannot be divided, as requested."""


class CheckpointError(UserError):
    """A checkpoint or run directory that is missing, damaged or belongs to another run."""


class PretrainedError(UserError):
    """A directory of pretrained weights that is missing, damaged, unsafe to read or made for another model."""


class NonFiniteLoss(Exception):
    """A loss or gradient that is NaN or infinite; the state before that update is kept."""

    exit_code = NON_FINITE_LOSS


class DeviceFault(Exception):
    """A repeated computation that gave different bits, so a device is faulty (train.check_every); that step is discarded."""

    exit_code = DEVICE_FAULT


# Errors that end a command with a message; any other exception is a bug.
REPORTED_ERRORS = (UserError, NonFiniteLoss, DeviceFault)


def not_downloaded(path: str | os.PathLike[str]) -> str:
    """Return closing sentences for a missing directory whose path could be a name on the Hugging Face hub, else ""."""
    found = re.fullmatch(r"(?:https?:/+huggingface\.co/|hf:/+)?((?:[\w.-]+/)?[\w-][\w.-]*)/?", str(path))
    name = found[1] if found else ""
    parent = pathlib.Path(name).parent
    if not name or name.startswith(".") or (parent != pathlib.Path(".") and parent.is_dir()):
        return ""
    cached = _in_hub_cache(name)
    if cached:
        return f" Nothing is downloaded, but this machine's cache of the Hugging Face hub has {name}: give the path {cached}"
    folder = name.rpartition("/")[2]
    return (
        f" Nothing is downloaded: if {name} is a model on the Hugging Face hub, download it with `hf download {name} --local-dir {folder}` "
        f"(or huggingface_hub.snapshot_download({name!r}, local_dir={folder!r})) and give that directory."
    )


def _in_hub_cache(name: str) -> pathlib.Path | None:
    """Return the cached snapshot of a model that has a config.json: its main branch's if cached, else the newest; or None."""
    home = pathlib.Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    cache = pathlib.Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    main = cache / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    snapshots = [path.parent for path in cache.glob("snapshots/*/*config.json")]
    return max(snapshots, key=lambda path: (path.name == commit, path.stat().st_mtime), default=None)


def prepare_again() -> str:
    """Return the command that prepares the corpus of this run again; for other commands than train and prepare, its general form."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    flags = [flag for flag in sys.argv[1:] if "=" not in flag or not flag.startswith(_NON_CORPUS_FLAGS)]
    if (
        spec is None
        or spec.name not in ("lm_research.train", "lm_research.prepare")
        or "--config" not in " ".join(flags)
    ):
        flags = ["--config=RUN", "--workdir=RUN"]
    return f"`python -m lm_research.prepare {shlex.join(flags)}`"


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a closing sentence with the most similar valid name, or all valid names if none is similar."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Valid: {', '.join(valid)}."

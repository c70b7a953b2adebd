"""What people get wrong, said in one paragraph: what, where, and the fix.

A `UserError` ends a verb with exit code 2 and no traceback (`--debug` shows it). Mistakes of programmers
are asserts; they keep their traceback and end with exit code 1.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable

# Exit codes of every verb.
DONE = 0
BUG = 1
USER_ERROR = 2
NON_FINITE_LOSS = 3
DEVICE_FAULT = 4
STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL: the work is saved; the same command goes on from there

_LONGEST = 4000  # characters of a message

# Flags of a run that its corpus has nothing to do with.
_NOT_OF_TEXT = (
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
    """A mistake that the person at the keyboard can fix. `str(error)` is the paragraph they read.

    What a message takes from a file could be endless, or move a terminal's cursor: the middle of a long one is left out, and
    characters that cannot be printed become question marks.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST * 3 // 4]} [...] {message[-_LONGEST // 4 :]}"
        super().__init__("".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in message))

    exit_code = USER_ERROR


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class DataError(UserError):
    """A corpus, data set or token store that cannot be read."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained, loaded or used with this model."""


class MeshError(UserError):
    """Devices that cannot be arranged, or arrays that cannot be divided, as asked."""


class CheckpointError(UserError):
    """A checkpoint or run directory that is missing, damaged or belongs to another run."""


class PretrainedError(UserError):
    """A directory of pretrained weights that is missing, damaged, unsafe to read or made for another model."""


class NonFiniteLoss(Exception):
    """The loss or its gradient became NaN or infinite; the state before that update is kept."""

    exit_code = NON_FINITE_LOSS


class DeviceFault(Exception):
    """The same computation gave other bits: a device computes something wrong (train.check_every). Nothing of that step is kept."""

    exit_code = DEVICE_FAULT


# What ends a command with a paragraph; anything else is a bug.
REPORTED_ERRORS = (UserError, NonFiniteLoss, DeviceFault)


def not_downloaded(path: str | os.PathLike[str]) -> str:
    """Closing sentences for a directory that does not exist and could be a name on the Hugging Face hub; "" where it could not."""
    found = re.fullmatch(r"(?:https?:/+huggingface\.co/|hf:/+)?((?:[\w.-]+/)?[\w-][\w.-]*)/?", str(path))
    name = found[1] if found else ""
    parent = pathlib.Path(name).parent
    if not name or name.startswith(".") or (parent != pathlib.Path(".") and parent.is_dir()):
        return ""
    cached = _in_hub_cache(name)
    if cached:
        return (
            f" Nothing is downloaded, but the cache of the Hugging Face hub on this machine has {name}: give {cached}"
        )
    folder = name.rpartition("/")[2]
    return (
        f" Nothing is downloaded: if {name} is a model on the Hugging Face hub, get it with `hf download {name} --local-dir {folder}` "
        f"(or huggingface_hub.snapshot_download({name!r}, local_dir={folder!r})) and give that directory."
    )


def _in_hub_cache(name: str) -> pathlib.Path | None:
    """The newest snapshot with a config.json that huggingface_hub keeps of a model, the one of its main branch first."""
    home = pathlib.Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    cache = pathlib.Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    main = cache / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    snapshots = [path.parent for path in cache.glob("snapshots/*/*config.json")]
    return max(snapshots, key=lambda path: (path.name == commit, path.stat().st_mtime), default=None)


def prepare_again() -> str:
    """The command that makes the corpus of this process's run again; where this is no such command, what it looks like."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    flags = [flag for flag in sys.argv[1:] if "=" not in flag or not flag.startswith(_NOT_OF_TEXT)]
    if (
        spec is None
        or spec.name not in ("lm_research.train", "lm_research.prepare")
        or "--config" not in " ".join(flags)
    ):
        flags = ["--config=RUN", "--workdir=RUN"]
    return f"`python -m lm_research.prepare {shlex.join(flags)}`"


def suggest(name: str, valid: Iterable[str]) -> str:
    """A closing clause that names the nearest valid name, or the valid ones when none is near."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Valid: {', '.join(valid)}."

"""Typed readers for the small files of a run directory (run_directory.py lists them), for commands that read runs without training.

The readers raise on damaged files; callers decide whether to report that, skip the file or continue without it.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from lm_research.common.documents import Finite, check_fields, json_value, read_bytes, read_json
from lm_research.common.paths import is_remote, kind
from lm_research.config import stored
from lm_research.config.resolving import by_key
from lm_research.errors import CheckpointError, ConfigError, UserError

Step = Annotated[int, Meta(ge=0, le=2**31 - 1)]
COMPLETE = "commit_success.txt"  # marks a complete checkpoint in a bucket
_LARGEST = 2**28  # bytes of a file that grows with the run
_ADVICE = "Restore it, or repeat the run in another --workdir."


class Life(TypedDict):
    """Entry of time.json: one process lifetime of the run, with `seconds` by activity."""

    begin: Finite
    first: Step
    end: Finite
    last: Step
    seconds: dict[str, Finite]


# Fields of summary.json, all optional.
SUMMARY = {
    "status": str,
    "step": Step,
    "digests": dict[str, str],
    "train": dict[str, Any],
    "eval": dict[str, Any],
    "test": dict[str, float],
    "seconds": dict[str, Finite],
}


def read_summary(directory: Path) -> dict[str, Any]:
    """Read summary.json; raise a CheckpointError if it cannot be read or a field has the wrong type."""
    path = directory / "summary.json"
    summary: dict[str, Any] = read_json(path, error=CheckpointError, fix=_ADVICE)
    check_fields(summary, SUMMARY, str(path), error=CheckpointError, fix=_ADVICE)
    return summary


def read_config(path: Path, error: type[UserError] = CheckpointError) -> dict[str, Any]:
    """Read the config.json of a run, migrated to the current format.

    Missing keys get the current defaults; keys that no longer exist are left out.

    Raises:
      error: it cannot be read, or a key has an invalid value.
    """
    return read_whole_config(path, error)[0]


def read_whole_config(path: Path, error: type[UserError] = CheckpointError) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the config.json of a run like `read_config`, and return the keys that no longer exist separately."""
    values = read_json(path, error=error, fix=_ADVICE)
    try:
        return stored.complete(values)
    except ConfigError as problem:
        raise error(f"{path}: {problem} {_ADVICE}") from problem


def read_keys(path: Path, fix: str = _ADVICE) -> dict[str, Any]:
    """Read the config.json of a run by dotted key, migrated to the current format if it is older; raise a CheckpointError if it cannot be read."""
    values = read_json(path, error=CheckpointError, fix=fix)
    with contextlib.suppress(ConfigError):  # a variant that no longer exists: keep the file's own keys
        if stored.migrated(values) != values:
            current, unknown = stored.complete(values)
            values = json.loads(json.dumps(current)) | unknown
    return by_key(values)


def line_of(text: str) -> dict[str, Any]:
    """Parse a line of metrics.jsonl: numbers by name, including "step".

    Raises:
      ValueError: it is not such a line; the message has the reason.
    """
    values = json_value(text)
    if not isinstance(values, dict) or type(values.get("step")) is not int or not 0 <= values["step"] < 2**31:
        raise ValueError("it is not a JSON object with a step")
    for name, value in values.items():
        if type(value) is not float and (type(value) is not int or abs(value) >= 2**63):
            raise ValueError(f"its {name} is not a number")
    return values


def read_text(path: Path, fix: str = _ADVICE) -> str:
    """Read a file that grows with the run as text; raise a CheckpointError if it cannot be read."""
    return read_bytes(path, error=CheckpointError, fix=fix, limit=_LARGEST).decode("utf-8", "replace")


def read_lives(directory: Path) -> list[Life]:
    """Read the entries of time.json; empty if there is no such file. Raise a CheckpointError if it is damaged."""
    path = directory / "time.json"
    lives = read_json(path, list[Life], error=CheckpointError, fix=_ADVICE) if kind(path) else []
    if any("steps" not in life["seconds"] for life in lives):
        raise CheckpointError(f"{path} has an entry without the key 'steps' in 'seconds'. {_ADVICE}")
    return lives


def checkpoint_steps(directory: Path) -> list[int]:
    """List the steps of the checkpoints in a directory in ascending order; empty if there is no such directory.

    In a bucket, where an unfinished checkpoint has its final name, only those that are marked as complete.
    """
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    if is_remote(directory):
        names = [name for name in names if name.isdecimal() and (directory / name / COMPLETE).exists()]
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and name == str(int(name)))


def newest_step(directory: Path, below: int | None = None) -> int | None:
    """Return the largest of `checkpoint_steps`, if given only of those below a step; None if there is none."""
    return max((step for step in checkpoint_steps(directory) if below is None or step < below), default=None)

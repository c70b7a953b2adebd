"""What the small files of a run directory hold, by type (run_directory.py says which there are): for those who read runs without training.

Whoever finds one damaged says so, leaves it out, or goes on without it; nothing here decides that.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from lm_research.common.documents import Finite, check_fields, json_value, read_bytes, read_json
from lm_research.common.paths import kind
from lm_research.config import stored
from lm_research.config.resolving import by_key
from lm_research.errors import CheckpointError, ConfigError, UserError

Step = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_LARGEST = 2**28  # bytes of a file that grows with the run
_ADVICE = "Restore it, or repeat the run in another --workdir."


class Life(TypedDict):
    """An entry of time.json; `seconds` by what they were spent on."""

    begin: Finite
    first: Step
    end: Finite
    last: Step
    seconds: dict[str, Finite]


# Of summary.json; all may be missing.
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
    """summary.json; raises a CheckpointError if it cannot be read, or has a field of another type."""
    path = directory / "summary.json"
    summary: dict[str, Any] = read_json(path, error=CheckpointError, fix=_ADVICE)
    check_fields(summary, SUMMARY, str(path), error=CheckpointError, fix=_ADVICE)
    return summary


def read_config(path: Path, error: type[UserError] = CheckpointError) -> dict[str, Any]:
    """The config.json of a run in today's form.

    Keys that it does not have get today's defaults; keys that are no longer known are left out.

    Raises:
      error: it cannot be read, or a key has a value that it cannot have.
    """
    return read_whole_config(path, error)[0]


def read_whole_config(path: Path, error: type[UserError] = CheckpointError) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, and by key what is no longer known."""
    values = read_json(path, error=error, fix=_ADVICE)
    try:
        return stored.complete(values)
    except ConfigError as mistake:
        raise error(f"{path}: {mistake} {_ADVICE}") from mistake


def read_keys(path: Path, fix: str = _ADVICE) -> dict[str, Any]:
    """The config.json of a run by dotted key, one of an earlier version in today's form; raises a CheckpointError if it cannot be read."""
    values = read_json(path, error=CheckpointError, fix=fix)
    if stored.migrated(values) != values:
        with contextlib.suppress(ConfigError):  # of what there is no more: as it stands
            known, unknown = stored.complete(values)
            values = json.loads(json.dumps(known)) | unknown
    return by_key(values)


def line_of(text: str) -> dict[str, Any]:
    """A line of metrics.jsonl: numbers by name, "step" among them; raises a ValueError that says what is wrong with another."""
    values = json_value(text)
    if not isinstance(values, dict) or type(values.get("step")) is not int or not 0 <= values["step"] < 2**31:
        raise ValueError("it is no JSON object with a step")
    for name, value in values.items():
        if type(value) is not float and (type(value) is not int or abs(value) >= 2**63):
            raise ValueError(f"its {name} is no number")
    return values


def read_text(path: Path, fix: str = _ADVICE) -> str:
    """A file that grows with the run, as text; raises a CheckpointError if it cannot be read."""
    return read_bytes(path, error=CheckpointError, fix=fix, limit=_LARGEST).decode("utf-8", "replace")


def read_lives(directory: Path) -> list[Life]:
    """The entries of time.json, none where there is no such file; raises a CheckpointError if it is damaged."""
    path = directory / "time.json"
    lives = read_json(path, list[Life], error=CheckpointError, fix=_ADVICE) if kind(path) else []
    if any("steps" not in life["seconds"] for life in lives):
        raise CheckpointError(f"{path} has an entry without the seconds of steps. {_ADVICE}")
    return lives


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of what is in a folder under the name of a checkpoint, whole or not, rising; none where there is no folder."""
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and name == str(int(name)))


def newest_step(directory: Path, below: int | None = None) -> int | None:
    """The newest step of `checkpoint_steps`, of those below one if it is given; None where there is none."""
    return max((step for step in checkpoint_steps(directory) if below is None or step < below), default=None)

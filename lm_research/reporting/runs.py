"""Reading of run directories for a report; sentences on the page describe what is missing or damaged.

Unlike `compare`, which needs finished runs, a report accepts a run in progress, without metrics or with damaged lines.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_research.common.documents import read_json
from lm_research.common.paths import FILE, FOLDER, NOTHING, is_remote, kind
from lm_research.config import run_files
from lm_research.errors import CheckpointError, UserError
from lm_research.run.goodput import total_time

_SAMPLES_AFTER = re.compile(r"held-out after step ([0-9]{1,10}):")
_TIMESTAMP_LENGTH = 20  # characters before the text of a line of log.txt: "2026-01-31 12:34:56 "
_SAMPLE_PREFIX = "  | "
_CONFIG_FIX = "So it cannot be read as a JSON object of keys: restore it or repeat the run."


@dataclasses.dataclass(frozen=True)
class Run:
    """Files of a run.

    Attributes:
      name: unique name on the page.
      directory: the run directory.
      config: config with flat, dotted keys.
      lines: lines of metrics.jsonl in order, each with a step.
      starts: entries of environment.json, one per start.
      seconds: time by activity over all starts; empty if time.json does not exist.
      summary: summary.json, or empty.
      samples: (step, text) of each evaluation with samples.
      notes: sentences about what is missing or damaged.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    seconds: dict[str, float]
    summary: dict[str, Any]
    samples: list[tuple[int, str]]
    notes: list[str]

    @property
    def step(self) -> int:
        """Last step in any file."""
        return max([line["step"] for line in self.lines] + [self.summary.get("step", 0)])

    @property
    def status(self) -> str:
        """One of `finished`, `stopped` and `unfinished`, which is running or killed."""
        if self.summary.get("step", 0) < self.step:  # the run was resumed after this summary
            return "unfinished"
        return self.summary.get("status", "unfinished")

    @property
    def final(self) -> dict[str, Any]:
        """Last value of every metric except the step, and the test scores of a task's best model."""
        last: dict[str, Any] = {}
        for line in self.lines:
            last.update(line)
        last |= {f"test_{key.removeprefix('eval_')}": value for key, value in self.summary.get("test", {}).items()}
        return {key: value for key, value in last.items() if key != "step"}

    @property
    def parameters(self) -> int | None:
        """Number of parameters at the last start that recorded it."""
        counts = (start.get("parameters") for start in reversed(self.starts))
        return next((count for count in counts if type(count) is int and 0 < count < 2**63), None)

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the final state."""
        return self.summary.get("digests", {})

    @property
    def commands(self) -> list[str]:
        """Command line of each start, without repetitions."""
        listed = (start.get("command") for start in self.starts)
        return list(dict.fromkeys(shlex.join(map(str, words)) for words in listed if isinstance(words, list)))


def read_run(directory: Path, name: str = "") -> Run:
    """Read a run directory, finished or not.

    Raises:
      CheckpointError: it is not a directory with a readable config.json.
    """
    if kind(directory) != FOLDER:
        raise CheckpointError(f"{directory} is not a directory. Give the --workdir of a run, or the folder of a study.")
    if kind(directory / "config.json") != FILE:
        raise CheckpointError(
            f"{directory} has neither config.json nor study.json, so it is neither a run nor a study. Give the --workdir of a run, "
            "or the folder of a study."
        )
    notes: list[str] = []
    config = run_files.read_keys(directory / "config.json", _CONFIG_FIX)
    lines = read_lines(directory / "metrics.jsonl", notes)
    starts, summary, lives = (
        _noted(notes, read, directory / name)
        for read, name in ((_starts, "environment.json"), (_summary, "summary.json"), (_lives, "time.json"))
    )
    seconds = total_time(lives or [])
    run = Run(
        name or name_of(directory),
        directory,
        config,
        lines,
        starts or [],
        seconds if any(seconds.values()) else {},
        summary or {},
        read_samples(directory / "log.txt"),
        notes,
    )
    notes.extend(_not_finite(directory, lines))
    if run.status != "finished" and lines:
        notes.append(
            f"{directory} has not finished: it is at step {run.step:,} of {run.config.get('train.num_steps', '?')}."
        )
    return run


def named(directories: Sequence[Path]) -> list[Run]:
    """Read runs, with unique names (see `names_of`)."""
    directories = list(dict.fromkeys(directories))
    return [read_run(path, name) for path, name in zip(directories, names_of(directories), strict=True)]


def name_of(directory: Path) -> str:
    """Return the name of a folder, also of "." or of a link to it."""
    return (directory if is_remote(directory) else directory.resolve()).name


def names_of(directories: Sequence[Path]) -> list[str]:
    """Return unique names of folders: their own names, or their paths if names are equal."""
    names = [name_of(path) for path in directories]
    return [name if names.count(name) == 1 else str(path) for path, name in zip(directories, names, strict=True)]


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that are JSON objects with an integer step; add a note about the others."""
    content = _noted(notes, run_files.read_text, path) or ""
    if not content.strip():
        notes.append(f"{path} has no metrics yet, so there are no curves of this run.")
    lines, damaged = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(run_files.line_of(line))
        except ValueError:
            damaged.append(number)
    if damaged and damaged[-1] == len(content.splitlines()) and not content.endswith("\n"):
        notes.append(
            f"{path}, line {damaged.pop()}: incomplete, because the run is writing it or was killed; left out."
        )
    if damaged:
        listed = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{path}, line {listed}: not a JSON object with a step and numbers; left out. Fix or remove it.")
    return lines


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Return (step, text) of the samples in log.txt; if a step was evaluated again, its last samples."""
    lines = (_noted([], run_files.read_text, path) or "").splitlines()
    found: dict[int, list[str]] = {}
    step = None
    for line in (line[_TIMESTAMP_LENGTH:] for line in lines):
        if match := _SAMPLES_AFTER.match(line):
            step = int(match[1])
            found[step] = []
        elif step is not None and line.startswith(_SAMPLE_PREFIX):
            found[step].append(line[len(_SAMPLE_PREFIX) :])
        else:
            step = None
    return [(step, "\n".join(texts)) for step, texts in sorted(found.items()) if texts]


def _noted(notes: list[str], read: Callable[[Path], Any], path: Path) -> Any:
    """Read a file; return None if it is missing, or if it is damaged, and then add a note."""
    if kind(path) == NOTHING:
        return None
    try:
        return read(path)
    except UserError as error:
        notes.append(f"{error} It is left out.")
        return None


def _starts(path: Path) -> list[dict[str, Any]]:
    return read_json(path, list[dict[str, Any]], fix="Restore it, or go without.")


def _summary(path: Path) -> dict[str, Any]:
    return run_files.read_summary(path.parent)


def _lives(path: Path) -> list[run_files.Life]:
    return run_files.read_lives(path.parent)


def _not_finite(directory: Path, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each metric with values that are not finite."""
    steps: dict[str, list[int]] = {}
    for line in lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                steps.setdefault(key, []).append(line["step"])
    return [
        f"{directory}: {key} is not finite in {len(found)} lines, first at step {found[0]:,}; charts leave them out."
        for key, found in steps.items()
    ]

"""A run directory as a report reads it: what can be read is shown, and what cannot is said in a sentence.

Unlike `compare`, which needs finished runs, a report takes a run as it is: in progress, without metrics, or with damaged lines.
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
from lm_research.common.paths import FILE, FOLDER, NOTHING, kind
from lm_research.config import run_files
from lm_research.errors import CheckpointError, UserError
from lm_research.run.goodput import total_time

_SAMPLES_AFTER = re.compile(r"held-out after step ([0-9]{1,10}):")
_TIME_OF_A_LINE = 20  # letters of log.txt before the text: "2026-01-31 12:34:56 "
_SAMPLE = "  | "
_CONFIG = "So it cannot be read as a JSON object of keys: restore it or repeat the run."


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run wrote down.

    Attributes:
      name: what the page calls it, unique among the runs of a page.
      config: flat, dotted keys.
      lines: of metrics.jsonl, in order, each with a step.
      starts: entries of environment.json, one a start.
      seconds: where the time went, over all starts; empty where no account exists.
      summary: of summary.json, or empty.
      samples: (step, text) of each evaluation that showed any.
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
        """The last step that anything is known of."""
        return max([line["step"] for line in self.lines] + [self.summary.get("step", 0)])

    @property
    def status(self) -> str:
        """One of `finished`, `stopped` and `unfinished`: running, or ended without a word."""
        if self.summary.get("step", 0) < self.step:  # of an earlier end, after which the run went on
            return "unfinished"
        return self.summary.get("status", "unfinished")

    @property
    def final(self) -> dict[str, Any]:
        """The last value of every metric but the step, and the scores of a task's best model over its test data."""
        last: dict[str, Any] = {}
        for line in self.lines:
            last.update(line)
        last |= {f"test_{key.removeprefix('eval_')}": value for key, value in self.summary.get("test", {}).items()}
        return {key: value for key, value in last.items() if key != "step"}

    @property
    def parameters(self) -> int | None:
        known = (start.get("parameters") for start in reversed(self.starts))
        return next((count for count in known if type(count) is int and 0 < count < 2**63), None)

    @property
    def digests(self) -> dict[str, str]:
        return self.summary.get("digests", {})

    @property
    def commands(self) -> list[str]:
        """How each start was typed, without repetitions."""
        listed = (start.get("command") for start in self.starts)
        return list(dict.fromkeys(shlex.join(map(str, words)) for words in listed if isinstance(words, list)))


def read_run(directory: Path, name: str = "") -> Run:
    """Reads a run directory, finished or not.

    Raises:
      CheckpointError: there is no run: no directory, or no readable config.json in it.
    """
    if kind(directory) != FOLDER:
        raise CheckpointError(f"{directory} is not a directory. Give the --workdir of a run, or the folder of a study.")
    if kind(directory / "config.json") != FILE:
        raise CheckpointError(
            f"{directory} holds neither config.json nor study.json, so it is no run and no study. Give the --workdir of a run, "
            "or the folder of a study."
        )
    notes: list[str] = []
    config = run_files.read_keys(directory / "config.json", _CONFIG)
    lines = read_lines(directory / "metrics.jsonl", notes)
    starts, summary, lives = (
        _noted(notes, read, directory / name)
        for read, name in ((_starts, "environment.json"), (_summary, "summary.json"), (_lives, "time.json"))
    )
    seconds = total_time(lives or [])
    run = Run(
        name or directory.resolve().name,
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
            f"{directory} has not finished: it stands at step {run.step:,} of {run.config.get('train.num_steps', '?')}."
        )
    return run


def named(directories: Sequence[Path]) -> list[Run]:
    """Reads runs; those whose folders have the same name are called by their paths."""
    directories = list(dict.fromkeys(directories))
    return [read_run(path, name) for path, name in zip(directories, names_of(directories), strict=True)]


def names_of(directories: Sequence[Path]) -> list[str]:
    """What folders are called on a page: by their names, or where two have the same by their paths."""
    names = [path.resolve().name for path in directories]
    return [name if names.count(name) == 1 else str(path) for path, name in zip(directories, names, strict=True)]


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl that are JSON objects with a whole step; `notes` gets a sentence about the others."""
    content = _noted(notes, run_files.read_text, path) or ""
    if not content.strip():
        notes.append(f"{path} holds no metrics yet, so there are no curves of this run.")
    lines, damaged = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(run_files.line_of(line))
        except ValueError:
            damaged.append(number)
    if damaged and damaged[-1] == len(content.splitlines()) and not content.endswith("\n"):
        notes.append(
            f"{path}, line {damaged.pop()}: not whole, as of a run that is writing it or was killed; left out."
        )
    if damaged:
        listed = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{path}, line {listed}: not a JSON object with a step and numbers; left out. Fix or remove it.")
    return lines


def read_samples(path: Path) -> list[tuple[int, str]]:
    """(step, text) of the samples that log.txt shows under its evaluations; of a step evaluated again, the last."""
    lines = (_noted([], run_files.read_text, path) or "").splitlines()
    found: dict[int, list[str]] = {}
    step = None
    for line in (line[_TIME_OF_A_LINE:] for line in lines):
        if match := _SAMPLES_AFTER.match(line):
            step = int(match[1])
            found[step] = []
        elif step is not None and line.startswith(_SAMPLE):
            found[step].append(line[len(_SAMPLE) :])
        else:
            step = None
    return [(step, "\n".join(texts)) for step, texts in sorted(found.items()) if texts]


def _noted(notes: list[str], read: Callable[[Path], Any], path: Path) -> Any:
    """What a file holds; None where it is missing, or damaged, which `notes` then says."""
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
    """A sentence for each metric with values that no chart can show."""
    steps: dict[str, list[int]] = {}
    for line in lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                steps.setdefault(key, []).append(line["step"])
    return [
        f"{directory}: {key} is not finite in {len(found)} lines, first at step {found[0]:,}; charts leave them out."
        for key, found in steps.items()
    ]

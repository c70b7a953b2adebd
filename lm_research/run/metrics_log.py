"""The metrics of a run: always metrics.jsonl, and trackers in addition.

Values are not filtered: a NaN is written as NaN. Lines are identified by their step; after a restart, lines past the
checkpoint are dropped, because their steps are repeated.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.common.disk import with_filename, write_atomically
from lm_research.config.run_files import line_of
from lm_research.run.callbacks import Callback
from lm_research.run.run_directory import keep_damaged
from lm_research.run.trackers.threads import Trackers


class MetricsWriter(Callback):
    """Appends to WORKDIR/metrics.jsonl and to the trackers."""

    def __init__(
        self,
        workdir: pathlib.Path,
        trackers: Sequence[str],
        resume_step: int,
        main_process: bool = True,
        config: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Open the file and the trackers. Only the main process writes.

        Lines after `resume_step`, from which the run starts, are dropped. Trackers show `config` with the run; `warn` receives a line if
        one of them fails.
        """
        path = workdir / "metrics.jsonl" if main_process else pathlib.Path(os.devnull)
        self.lines = _drop_after(path, resume_step, warn) if main_process else 0
        self._file = open(path, "a", buffering=1)
        self._trackers = Trackers(trackers if main_process else (), workdir, resume_step, config or {}, warn)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line: the step and the values, unrounded."""
        with with_filename(self._file.name):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        self.lines += 1
        self._trackers.write(step, values)

    @override
    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Send text (samples) to the trackers."""
        self._trackers.write_text(step, name, text)

    def close(self, failed: bool = False) -> None:
        """Close the file, and the trackers within a bounded time; `failed` if the run ends with an error."""
        try:
            with with_filename(self._file.name):
                self._file.close()
        finally:
            self._trackers.close(failed)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        self.close(failed=kind is not None)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read all complete lines of a metrics.jsonl; lines cut off by a crash or damaged are left out."""
    return _read(path)[0]


def find_gaps(lines: Sequence[Mapping[str, Any]], start: int, every: int, written: int | None) -> str:
    """Describe in a sentence which lines are missing up to the step that a run resumes from; "" if none are.

    Args:
      lines: the existing lines.
      start: the step that the run resumes from.
      every: steps between lines (logging.every_steps).
      written: the number of lines when that step was saved; None if the checkpoint does not have it.
    """
    if written is None:
        written = len(lines) + bool(start >= every and not lines)
    if len(lines) >= written:
        return ""
    steps = [0, *sorted({line["step"] for line in lines}), start]
    gaps = [f"{a + 1} to {b}" for a, b in zip(steps, steps[1:], strict=False) if b - a > every]
    lost = f"{written - len(lines)} of its lines" if lines else "all lines"
    return (
        f"WARNING: metrics.jsonl was deleted, cut or damaged: {lost} up to step {start} are missing"
        + (f" (steps {', '.join(gaps)})" if gaps else "")
        + ". The run continues without them."
    )


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], bool]:
    """Read the lines; also return whether any but the last, which a crash may cut off, was left out."""
    lines, damaged = [], False
    content = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(content, 1):
        try:
            lines.append(line_of(line))
        except ValueError:
            damaged |= number < len(content)
    return lines, damaged


def _drop_after(path: pathlib.Path, step: int, warn: Callable[[str], None]) -> int:
    """Drop the lines of later steps and unreadable lines; return how many are left."""
    if not path.exists():
        return 0
    lines, damaged = _read(path)
    if damaged:
        warn(f"WARNING: {path} has lines that cannot be read; the original is kept in {keep_damaged(path)}.")
    kept = [line for line in lines if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    return len(kept)

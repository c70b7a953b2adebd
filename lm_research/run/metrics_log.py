"""Metrics of a run: metrics.jsonl always, trackers beside it.

Nothing here filters: a NaN is written as NaN. Lines are identified by their step; after a restart, lines past the
checkpoint are dropped, because the steps they speak of are taken again.
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
        """`resume_step`: the step the run starts from; later lines are dropped. Only the main process writes.

        `config` is what trackers show with the run, `warn` gets a line if one of them fails.
        """
        path = workdir / "metrics.jsonl" if main_process else pathlib.Path(os.devnull)
        self.lines = _drop_after(path, resume_step, warn) if main_process else 0  # those there are
        self._file = open(path, "a", buffering=1)
        self._trackers = Trackers(trackers if main_process else (), workdir, resume_step, config or {}, warn)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line: the step and the values, numbers as they are."""
        with with_filename(self._file.name):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        self.lines += 1
        self._trackers.write(step, values)

    @override
    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Text (samples) for the trackers."""
        self._trackers.write_text(step, name, text)

    def close(self, failed: bool = False) -> None:
        """Waits for the trackers, for a bounded time; `failed`: the run ends by an error."""
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
    """All whole lines of a metrics.jsonl; what a crash cut short, or something damaged, is left out."""
    return _read(path)[0]


def find_gaps(lines: Sequence[Mapping[str, Any]], start: int, every: int, written: int | None) -> str:
    """What is missing of the lines up to the step that a run goes on from, as a sentence; "" if nothing is.

    Args:
      lines: those there are.
      start: that step.
      every: steps between lines (logging.every_steps).
      written: how many there were when the step was saved; None where the checkpoint does not say.
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
        + ". The run goes on; they stay missing."
    )


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines, and whether one was left out that no crash explains: not the last, which it cuts short."""
    lines, damaged = [], False
    content = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(content, 1):
        try:
            lines.append(line_of(line))
        except ValueError:
            damaged |= number < len(content)
    return lines, damaged


def _drop_after(path: pathlib.Path, step: int, warn: Callable[[str], None]) -> int:
    """Drops the lines of later steps, and what is no line; returns how many are left."""
    if not path.exists():
        return 0
    lines, damaged = _read(path)
    if damaged:
        warn(f"WARNING: {path} has lines that cannot be read; as it was, it is kept in {keep_damaged(path)}.")
    kept = [line for line in lines if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    return len(kept)

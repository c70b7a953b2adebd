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

from lm_research.training.run_directory import write_atomically
from lm_research.training.trackers import Trackers


class MetricsWriter:
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
        if main_process:
            _drop_after(path, resume_step)
        self._file = open(path, "a", buffering=1)
        self._trackers = Trackers(trackers if main_process else (), workdir, resume_step, config or {}, warn)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: the step and the values, numbers as they are."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._trackers.write(step, values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Text (samples) for the trackers."""
        self._trackers.write_text(step, name, text)

    def close(self, failed: bool = False) -> None:
        """Waits for the trackers, for a bounded time; `failed`: the run ends by an error."""
        self._file.close()
        self._trackers.close(failed)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        self.close(failed=kind is not None)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; what a crash cut short, and everything after it, is left out."""
    lines = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                break
            if not isinstance(values, dict) or "step" not in values:
                break
            lines.append(values)
    return lines


def _drop_after(path: pathlib.Path, step: int) -> None:
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

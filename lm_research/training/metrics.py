"""Metrics of a run: metrics.jsonl always, TensorBoard beside it.

Nothing here filters: a NaN is written as NaN. Lines are identified by their step; after a restart, lines past the
checkpoint are dropped, because the steps they speak of are taken again.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from lm_research.training.run_directory import write_atomically


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and to the trackers."""

    def __init__(self, workdir: pathlib.Path, trackers: str, resume_step: int, main_process: bool = True) -> None:
        """`resume_step`: the step the run starts from; later lines are dropped. Only the main process writes."""
        path = workdir / "metrics.jsonl" if main_process else pathlib.Path(os.devnull)
        if main_process:
            _drop_after(path, resume_step)
        self._file = open(path, "a", buffering=1)
        self._tensorboard = None
        if trackers == "tensorboard" and main_process:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: the step and the values, numbers as they are."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard:
            for name, value in values.items():
                if isinstance(value, int | float):
                    prefix = "eval/" if name.startswith("eval_") else "train/"
                    self._tensorboard.add_scalar(prefix + name.removeprefix("eval_"), value, step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Text (samples) for the trackers."""
        if self._tensorboard:
            self._tensorboard.add_text(name, text.replace("\n", "  \n"), step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


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

"""Rows that train: runs of lm_research.train with several seeds, and their figures with intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from experiments.results.row import CURVE, MEMORY, ROOT, Figure, MissingData
from lm_research.common.documents import Object, read_json
from lm_research.common.interrupts import SIGNALS
from lm_research.errors import STOPPED_BY_SIGNAL, DataError
from lm_research.run.metrics_log import read_metrics

# Student's t for a two-sided interval of 95%, by degrees of freedom (Abramowitz and Stegun, table 26.10).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published figure that a trained model is compared with.

    Attributes:
      value: the figure.
      spread: its own uncertainty, such as a standard deviation over runs; 0 if none is published.
      origin: READ, COMPUTED or MEMORY.
      at_least: it is a goal, and ours may exceed it.
      at_most: it is a goal, and ours may be lower.
    """

    value: float
    spread: float = 0.0
    origin: str = MEMORY
    at_least: bool = False
    at_most: bool = False


def train(folder: pathlib.Path, config: str, seed: int, **settings: object) -> dict[str, Any]:
    """Train one model in `folder`, or continue an earlier run there; return its summary.json.

    Args:
      folder: of the run.
      config: file of the config, from the repository's root.
      seed: of the run.
      **settings: changed keys, with two underscores for a dot (task__train=...).

    Raises:
      DataError: the run did not end.
    """
    keys = [f"--config.{name.replace('__', '.')}={value}" for name, value in settings.items()]
    command("train", f"--config={config}", f"--workdir={folder}", f"--config.seed={seed}", *keys)
    return read_json(folder / "summary.json", Object, fix="Run the row again.")


def command(name: str, *arguments: object) -> None:
    """Run a command of lm_research; what it prints goes to stderr.

    Raises:
      MissingData: it was stopped by a signal, which is no result.
      DataError: it failed.
    """
    code = run_saving([sys.executable, "-m", f"lm_research.{name}", *map(str, arguments)])
    if code == STOPPED_BY_SIGNAL:
        raise MissingData(f"lm_research.{name} was stopped. The same command with the same --workdir continues it.")
    if code:
        raise DataError(f"lm_research.{name} ended with exit code {code}; its message is above.")


def run_saving(arguments: Sequence[str]) -> int:
    """Run a program, and return its exit code. SIGTERM and Ctrl-C go to it, so that it saves, and end this process after it."""
    received: list[int] = []
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=sys.stderr, process_group=0)  # Ctrl-C reaches it through us

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
    return code


def interval(values: Sequence[float]) -> float:
    """Return the half-width of the 95% interval of a mean, from the spread of at most ten values; 0 for a single one."""
    if len(values) == 1:
        return 0.0
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def figure(name: str, values: Sequence[float], published: Published) -> Figure:
    """Make the figure of a mean over seeds; results are equal within both uncertainties."""
    own = interval(values)
    tolerance = math.hypot(own, published.spread)
    mean = statistics.fmean(values)
    goals = {"at_least": published.at_least, "at_most": published.at_most}
    return Figure(name, mean, published.value, tolerance, published.origin, interval=own, **goals)


def write_curve(folder: pathlib.Path, runs: Sequence[pathlib.Path], points: int = 8) -> None:
    """Write the training losses of runs of equal length, at evenly spaced steps, to `folder`/CURVE."""
    losses = [
        {line["step"]: line["loss_nats"] for line in read_metrics(run / "metrics.jsonl") if "loss_nats" in line}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, losses)))
    chosen = [steps[round(at * (len(steps) - 1) / (points - 1))] for at in range(points)] if steps else []
    lines = [[step, *(round(loss[step], 4) for loss in losses)] for step in dict.fromkeys(chosen)]
    heads = ["step", *(f"training loss, {run.name}" for run in runs)]
    (folder / CURVE).write_text(json.dumps({"heads": heads, "lines": lines}))

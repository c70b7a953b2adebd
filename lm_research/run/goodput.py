"""Goodput, the fraction of a run's wall time spent in steps that count, and the causes of the rest.

A run's time is that of all its lives (a life is one start of the command, until it ends or is killed). time.json keeps them all, so
the cost of an interruption is visible: the time until the next start, and the steps that were repeated because no checkpoint held
them.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from lm_research.common.disk import write_atomically
from lm_research.config.run_files import Life, read_lives
from lm_research.errors import CheckpointError
from lm_research.run.callbacks import Callback
from lm_research.run.run_directory import keep_damaged

# What a life spends time on in addition to steps: until its first step, compiling, waiting for batches, evaluating, saving, checking devices.
CAUSES = ("start", "compile", "data", "eval", "checkpoint", "check")
FILE = "time.json"
_SECONDS_BETWEEN_WRITES = 10.0  # of time.json, which is all that is lost when a process is killed


def process_start_time() -> float:
    """Return the time.monotonic of this process's start, if it is a command of this package; otherwise of now."""
    now = time.monotonic()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.startswith("lm_research."):
        return now
    try:  # proc(5): field 22 is in clock ticks since boot; the name before it may contain spaces
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - age if 0 < age < 600 else now


class TimeAccount:
    """The time account of one life, in seconds.

    `paused` stops the clock of steps, so that rates are about steps only. `waiting` for a batch does not: it is part of a step, and is
    counted in addition, but only while the device is idle.
    """

    def __init__(self, born: float) -> None:
        """Start the account; `born` is the time.monotonic at which the run began."""
        self.born = born
        self.lost = dict.fromkeys(CAUSES, 0.0)
        self.lost["start"] = time.monotonic() - born
        self._mark = time.monotonic()

    def lap(self) -> float:
        """Return the seconds spent in steps since the last lap."""
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        return elapsed

    @contextmanager
    def paused(self, cause: str) -> Iterator[None]:
        """Charge the time of a block to one of CAUSES instead of to steps."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.lost[cause] += time.monotonic() - begin
            self._mark += time.monotonic() - begin

    @contextmanager
    def waiting(self, idle: bool) -> Iterator[None]:
        """Time a wait for a batch; it counts if the device is `idle`, with all dispatched work done."""
        begin = time.monotonic()
        yield
        self.lost["data"] += (time.monotonic() - begin) * idle

    def account(self) -> dict[str, float]:
        """Return the seconds in steps and by cause, which add up to the life so far."""
        steps = time.monotonic() - self.born - sum(self.lost.values())
        return {"steps": steps, **self.lost}

    @property
    def goodput(self) -> float:
        """The fraction of this life spent in steps, 0 to 1."""
        account = self.account()
        return account["steps"] / sum(account.values())


class RunHistory(Callback):
    """Writes WORKDIR/time.json: one entry per life, {begin, end [seconds since 1970], first, last [steps], seconds {}}."""

    def __init__(self, workdir: pathlib.Path, clock: TimeAccount, first: int, main_process: bool = True) -> None:
        """Read the earlier lives; `first` is the step that this life starts from."""
        self._path, self._clock, self._main = workdir / FILE, clock, main_process
        begin = time.time() - (time.monotonic() - clock.born)
        self._begin, self._first = round(begin, 1), first
        self._entry: Life | None = None
        try:
            self._before = read_lives(workdir)
        except CheckpointError:
            self._before = []
            if main_process:
                keep_damaged(self._path)
        self._written = 0.0

    def write(self, step: int, now: bool = True) -> None:
        """Write the account up to a step; without `now` only if some seconds have passed since the last write.

        A life without steps gets no entry.
        """
        if (
            not self._main
            or step == self._first
            or not (now or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES)
        ):
            return
        seconds = {name: round(value, 3) for name, value in self._clock.account().items()}
        end = round(time.time(), 1)
        self._entry = {"begin": self._begin, "first": self._first, "end": end, "last": step, "seconds": seconds}
        write_atomically(self._path, json.dumps([*self._before, self._entry], indent=1) + "\n")
        self._written = time.monotonic()

    @override
    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, now=False)

    @override
    def on_save(self, step: int) -> None:
        self.write(step)

    @property
    def exists(self) -> bool:
        """Whether there is an account of earlier lives."""
        return bool(self._before)

    @property
    def spent(self) -> float:
        """The seconds of all lives before this one, without the time between them."""
        return sum(sum(life["seconds"].values()) for life in self._before)

    def total(self) -> dict[str, float]:
        """Return `total_time` of all lives up to the last `write`."""
        return total_time([*self._before, *([self._entry] if self._entry else [])])


def total_time(lives: list[Life]) -> dict[str, float]:
    """Add up the seconds of a run since its first start: in steps that count, and by cause.

    In addition to CAUSES there are `repeated`, the time of steps that a later life repeated, and `down`, from the end of a life to the
    next one's start.
    """
    total = dict.fromkeys(("steps", *CAUSES, "repeated", "down"), 0.0)
    for life, following in zip(lives, [*lives[1:], None][: len(lives)], strict=True):
        for name, seconds in life["seconds"].items():
            total[name] = total.get(name, 0.0) + seconds
        if following is not None:
            taken = life["last"] - life["first"]
            again = min(taken, max(0, life["last"] - following["first"]))
            repeated = life["seconds"]["steps"] * again / max(1, taken)
            total["steps"] -= repeated
            total["repeated"] += repeated
            total["down"] += max(0.0, following["begin"] - life["end"])
    return total


def describe_times(total: dict[str, float]) -> str:
    """Describe as `97.2% of 1:02:03 in steps, eval 1.5%, compile 1.0%`: causes of 0.05% and more, the largest first."""
    wall = max(sum(total.values()), 1e-9)
    causes = sorted(((seconds, name) for name, seconds in total.items() if name != "steps"), reverse=True)
    parts = [f"{name} {seconds / wall:.1%}" for seconds, name in causes if seconds / wall >= 0.0005]
    clock = f"{int(wall // 3600)}:{int(wall // 60 % 60):02d}:{int(wall % 60):02d}"
    return ", ".join([f"{total['steps'] / wall:.1%} of {clock} in steps", *parts])

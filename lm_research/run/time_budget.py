"""A budget of time: as many steps as it allows, and a learning rate that ends with them.

Time needs the machine: a few steps on a
state that is thrown away say how long one takes, and the number of steps follows. From then on the schedule follows the progress
in the budget: where the rest would end clearly early or late (a hundredth of the budget, or a twenty-fifth of what is left of it: the machine
turned slower or faster, or a restart cost time), the number of steps left is set anew, and the rest of the schedule is stretched over them. So the
learning rate has no jump, ends where it should, and the run ends on time. What counts is all the time of a run's lives (`goodput`), from the
start of the command, not that between them.

WORKDIR/budget.json holds each plan with the step it was made at. Only they decide the learning rate of a step, so a run that
resumes goes on as it was planned until the clock says otherwise.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypedDict

import jax
import numpy as np
from msgspec import Meta
from typing_extensions import override

from lm_research import config as config_lib
from lm_research.common.disk import write_atomically
from lm_research.common.documents import Object, check_fields, read_json
from lm_research.config import Config
from lm_research.errors import CheckpointError, ConfigError
from lm_research.parallel import processes
from lm_research.run.budget import NO_END, StepBudget, check_warmup
from lm_research.run.goodput import RunHistory, TimeAccount
from lm_research.training.state import State

FILE = "budget.json"
_TOLERANCE = 0.01  # fraction of the budget by which the end may be off before the plan changes
_REMAINING_TOLERANCE = 0.04  # and fraction of what is left
_CHECKS = 50  # at least so many looks at the clock in a run
_CALIBRATION = 0.02  # fraction of the budget for timed steps
Log = Callable[[str], None]


class TimeBudget(StepBudget):
    """The end of a run with a budget of time; every process makes one and calls it at the same steps."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        start: int,
        account: TimeAccount,
        history: RunHistory,
        place: Any,
        log: Log,
    ) -> None:
        """Args: `start` is the step the run goes on from, `place` the sharding of `device_args`."""
        super().__init__(0)
        asked = config_lib.parse_budget(config)
        assert asked is not None
        self._budget, self._config, self._path = asked.amount, config, workdir / FILE
        self._account, self._history, self._place, self._log = account, history, place, log
        stored = _read(self._path)
        # Later plans spoke of steps that are taken again.
        self._plans = _of_process_0([plan for plan in stored.get("plans", ()) if plan["step"] <= start])
        self._costs = dict.fromkeys(("step", "eval", "checkpoint", "compile"), 0.0) | stored.get("seconds_each", {})
        self._recent = np.array([10 * self._costs["step"], 10.0])  # seconds and steps, those further back counting less
        self._told = 0
        self._mark(start)
        self.last = NO_END
        self._earlier = stored.get("earlier", [])
        another = bool(self._plans) and stored.get("budget") not in (None, config.train.budget)
        if processes.broadcast_flag(another):  # as if it had been this one from the first step on
            self._earlier = [*self._earlier, {name: stored.get(name) for name in ("budget", "plans")}]
            more = processes.broadcast_numbers([self._fitting(start)])[0]
            self._plans = []
            check_warmup(config, max(1, start + more))
            self._plan(0, max(1, start, start + more))
        elif self._plans:
            self._take()
            self._told = self.end
            log(f"budget: {config.train.budget}, {self._left():,.0f} s of it left for steps {start} to {self.end}")
            if start < self.end and not processes.broadcast_flag(self._left() > 0):
                self._plan(start, start + 1)
        else:  # until it is calibrated: a rate of a schedule without an end
            if start:
                log(
                    f"WARNING: {FILE} is missing: the run is planned anew, and so is its learning rate, from step {start} on."
                )
            self._plans = [(0, NO_END)]
            self._take()
            self._plans = []

    @property
    @override
    def needs_calibration(self) -> bool:
        return not self._plans

    def calibrate(self, take: Callable[[], Any], eval_batches: int) -> None:
        """Sets the first plan.

        Args:
          take: takes a step that does not count and returns its result; the first call compiles.
          eval_batches: batches of an evaluation.

        Raises:
          ConfigError: not even one step fits.
        """
        jax.block_until_ready(take())
        with self._account.paused("start"):
            one = _seconds(take, 1)
            count = processes.broadcast_numbers([int(np.clip(_CALIBRATION * self._budget / one, 2, 30))])[0]
            step = _seconds(take, count)
        # A forward pass is a third of a step; the rest is seen once it has happened.
        evaluation, checkpoint = eval_batches * step / 3, 1 + min(1.0, step)
        compiling = self._account.lost["compile"]
        self._costs = {"step": step, "eval": evaluation, "checkpoint": checkpoint, "compile": compiling}
        self._recent = np.array([count * step, count])
        start = self._step
        self._mark(start)
        more = processes.broadcast_numbers([self._fitting(start)])[0]
        if more < 1:
            raise ConfigError(
                f"train.budget={self._config.train.budget} is used up before the first step: {self._spent():.0f} s for reading the "
                f"corpus and compiling, {step:.2g} s a step, and evaluating and saving at the end. Give more; the corpus is kept, so the "
                "next start is faster."
            )
        check_warmup(self._config, start + more)
        self._plan(0, start + more)

    @override
    def update(self, step: int, state: State) -> bool:
        if step - self._step < self._every or step >= self.end:
            return False
        jax.block_until_ready(state["step"])  # the clock is to speak of steps that are done
        self._history.write(
            step, now=False
        )  # what is spent stays spent, whatever happens before the next line of metrics
        self._measure(step)
        end = step + max(1, self._fitting(step))
        # Early a machine's ups and downs are left to even out.
        tolerance = max(1.0, _TOLERANCE * self._budget, _REMAINING_TOLERANCE * self._left())
        off = abs(end - self.end) * self._costs["step"] > tolerance
        end = processes.broadcast_numbers([end if off else self.end])[0]
        if end == self.end:
            return False
        self._plan(step, end)
        return True

    def _plan(self, step: int, end: int) -> None:
        self._plans = [*self._plans, (step, end)]
        self._take()
        each = {name: round(seconds, 6) for name, seconds in self._costs.items()}
        if jax.process_index() == 0:
            plans = [{"step": at, "end": to} for at, to in self._plans]
            content = {"budget": self._config.train.budget, "num_steps": end, "plans": plans, "seconds_each": each}
            content |= {"earlier": self._earlier} if self._earlier else {}
            write_atomically(self._path, json.dumps(content, indent=1) + "\n")
        if abs(end - self._told) <= 0.03 * end:
            return  # no news; the file has it
        instead = f" instead of {self._told:,}" if self._told else ""
        self._told = end
        self._log(
            f"budget: {end:,} steps{instead} in "
            f"{self._config.train.budget}, by {each['step']:.3g} s a step, {each['eval']:.2g} s an evaluation; {self._left():.0f} s are left"
        )

    def _take(self) -> None:
        """Makes the last plan the one that counts."""
        self.end = self._plans[-1][1]
        self._every = max(1, min(self._config.logging.every_steps, self.end // _CHECKS))
        self.schedule_args = (position(self._plans),)
        self.device_args = tuple(jax.device_put(x, self._place) for x in self.schedule_args)

    def _spent(self) -> float:
        return self._history.spent + time.monotonic() - self._account.born

    def _left(self) -> float:
        return self._budget - self._spent()

    def _fitting(self, step: int) -> int:
        """Steps after `step` that fit, with their share of evaluations and checkpoints, and an end as it must be."""
        costs, config = self._costs, self._config
        seconds = self._left()
        if not self._account.lost["eval"]:  # the first evaluation of a life compiles too
            seconds -= costs["compile"]
        finals = 1 + (1 + bool(config.task.test) if config.task else 0)  # a task scores its best model once more
        seconds -= finals * costs["eval"] + 2 * costs["checkpoint"] + _TOLERANCE * self._budget / 2
        each = costs["step"]
        if config.eval.every_steps:
            each += costs["eval"] / config.eval.every_steps
        if config.checkpoint.every_steps:
            each += costs["checkpoint"] / config.checkpoint.every_steps
        return int(min(seconds / max(each, 1e-9), NO_END - step))

    def _mark(self, step: int) -> None:
        """Measures from here on."""
        self._step, self._lost = step, dict(self._account.lost)
        seconds = self._account.account()
        self._in_steps = seconds["steps"] + seconds["data"]

    def _measure(self, step: int) -> None:
        """What steps, evaluations and checkpoints have cost since the last look."""
        before, lost, since = self._in_steps, self._lost, self._step
        self._mark(step)
        seconds = self._in_steps - before
        # Over about a quarter of what is left: patient at first, quick at the end.
        self._recent *= np.exp(-seconds / max(self._left() / 4, 1e-3))
        self._recent += seconds, step - since
        self._costs["step"] = float(self._recent[0] / self._recent[1])
        for name, every in (
            ("eval", self._config.eval.every_steps),
            ("checkpoint", self._config.checkpoint.every_steps),
        ):
            times = step // every - since // every if every else 0
            if self._lost[name] > lost[name]:
                self._costs[name] = (self._lost[name] - lost[name]) / max(1, times)


def make_budget(
    config: Config, workdir: pathlib.Path, start: int, account: TimeAccount, history: RunHistory, place: Any, log: Log
) -> StepBudget:
    """Where a run ends: see `TimeBudget` for a budget of time, and for the arguments."""
    if config_lib.has_time_budget(config):
        return TimeBudget(config, workdir, start, account, history, place, log)
    return StepBudget(config.train.num_steps)


def position(plans: Iterable[tuple[int, int]]) -> np.ndarray:
    """Where the steps of the last plan lie on the schedule: step, its place there, places a step, length of the schedule.

    The schedule has the length of the first plan. Each later plan (step, end) spreads what is left of it over the steps
    from `step` to `end`.
    """
    (at, length), *later = plans
    place, pace = 0.0, 1.0
    for step, end in later:
        place, at = place + (step - at) * pace, step
        pace = max(0.0, length - place) / (end - step)
    return np.array([at, place, pace, length], np.float32)


def _of_process_0(plans: Sequence[_Plan]) -> list[tuple[int, int]]:
    """(step, end) of process 0's plans, in all processes."""
    numbers = [number for plan in plans for number in (plan["step"], plan["end"])]
    count = 2 * processes.broadcast_numbers([len(plans)])[0]
    shared = processes.broadcast_numbers(numbers if len(numbers) == count else [0] * count)
    return list(zip(shared[::2], shared[1::2], strict=True))


def _seconds(take: Callable[[], Any], count: int) -> float:
    """Seconds of a step, the mean of `count`."""
    begin = time.monotonic()
    for _ in range(count):
        result = take()
    jax.block_until_ready(result)
    return max((time.monotonic() - begin) / count, 1e-6)


class _Plan(TypedDict):
    step: Annotated[int, Meta(ge=0, le=NO_END)]
    end: Annotated[int, Meta(ge=1, le=NO_END)]


_FIELDS = {
    "budget": str,
    "plans": list[_Plan],
    "seconds_each": dict[str, Annotated[float, Meta(ge=0, le=1e12)]],
    "earlier": list[Object],
}


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The content of budget.json, {} where there is none; raises a CheckpointError if it is damaged, for it decides the learning rate."""
    if not path.exists():
        return {}
    fix = "Restore it, or delete it: the run then goes on as if it had begun with this start."
    content = read_json(path, error=CheckpointError, fix=fix)
    check_fields(content, _FIELDS, str(path), error=CheckpointError, fix=fix)
    steps = [plan["step"] for plan in content.get("plans") or ()]
    if steps != sorted(set(steps)) or any(plan["end"] <= plan["step"] for plan in content.get("plans") or ()):
        raise CheckpointError(f"{path}: its plans do not follow one another. {fix}")
    return {name: value for name, value in content.items() if value is not None}

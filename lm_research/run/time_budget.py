"""A budget of time: as many steps as it allows, and a learning rate schedule that ends with them.

A few timed steps, on a state that is thrown away, give the number of steps. If the run would later end clearly early or late (by a
hundredth of the budget or a twenty-fifth of what is left of it, whichever is more, because the machine became slower or faster, or a
restart took time), the number of remaining steps is recomputed, and the rest of the schedule is stretched over them. So the learning rate
has no jump and ends where it should, and the run ends on time. The time of all lives of the run counts (see `goodput`), from the start of
the command, but not the time between them.

WORKDIR/budget.json holds each plan with the step at which it was made. Only the plans decide the learning rate of a step, so a run that
resumes follows them until the clock requires a new one.
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
from lm_research.parallel import exchange
from lm_research.run.budget import NO_END, StepBudget, check_warmup
from lm_research.run.goodput import RunHistory, TimeAccount
from lm_research.training.state import State

FILE = "budget.json"
_TOLERANCE = 0.01  # fraction of the budget by which the end may be off before the plan changes
_REMAINING_TOLERANCE = 0.04  # and fraction of what is left
_CHECKS = 50  # the minimum number of times that a run checks the clock
_CALIBRATION = 0.02  # fraction of the budget for timed steps
Log = Callable[[str], None]


class TimeBudget(StepBudget):
    """The end of a run with a budget of time. Every process makes one and calls it at the same steps."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        start: int,
        account: TimeAccount,
        history: RunHistory,
        sharding: Any,
        log: Log,
    ) -> None:
        """Read the plans so far; the run resumes from step `start`, and `device_args` get the given sharding."""
        super().__init__(0)
        budget = config_lib.parse_budget(config)
        assert budget is not None
        self._budget, self._config, self._path = budget.amount, config, workdir / FILE
        self._account, self._history, self._sharding, self._log = account, history, sharding, log
        stored = _read(self._path)
        # Later plans are about steps that are repeated.
        self._plans = _of_process_0([plan for plan in stored.get("plans", ()) if plan["step"] <= start])
        self._costs = dict.fromkeys(("step", "eval", "checkpoint", "compile"), 0.0) | stored.get("seconds_each", {})
        self._recent = np.array([10 * self._costs["step"], 10.0])  # seconds and steps, with older ones decayed
        self._reported_end = 0
        self._start_measuring(start)
        self.last = NO_END
        self._earlier = stored.get("earlier", [])
        is_new = bool(self._plans) and stored.get("budget") not in (None, config.train.budget)
        if exchange.broadcast_flag(is_new):  # plan as if the budget had been this one from the first step
            self._earlier = [*self._earlier, {name: stored.get(name) for name in ("budget", "plans")}]
            more = exchange.broadcast_numbers([self._steps_left(start)])[0]
            self._plans = []
            check_warmup(config, max(1, start + more))
            self._plan(0, max(1, start, start + more))
        elif self._plans:
            self._apply_plan()
            self._reported_end = self.end
            log(
                f"budget: {config.train.budget}, {self._seconds_left():,.0f} s of it left for steps {start} to {self.end}"
            )
            if start < self.end and not exchange.broadcast_flag(self._seconds_left() > 0):
                self._plan(start, start + 1)
        else:  # until the calibration, use a schedule without an end
            if start:
                log(f"WARNING: {FILE} is missing: the run and its learning rate are planned again, from step {start}.")
            self._plans = [(0, NO_END)]
            self._apply_plan()
            self._plans = []

    @property
    @override
    def needs_calibration(self) -> bool:
        return not self._plans

    def calibrate(self, take: Callable[[], Any], eval_batches: int) -> None:
        """Make the first plan.

        Args:
          take: takes a step that does not count and returns its result; the first call compiles.
          eval_batches: batches of an evaluation.

        Raises:
          ConfigError: not even one step fits.
        """
        jax.block_until_ready(take())
        with self._account.paused("start"):
            one = _seconds(take, 1)
            count = exchange.broadcast_numbers([int(np.clip(_CALIBRATION * self._budget / one, 2, 30))])[0]
            step = _seconds(take, count)
        # Assume that a forward pass is a third of a step; real evaluations are measured later.
        evaluation, checkpoint = eval_batches * step / 3, 1 + min(1.0, step)
        compiling = self._account.lost["compile"]
        self._costs = {"step": step, "eval": evaluation, "checkpoint": checkpoint, "compile": compiling}
        self._recent = np.array([count * step, count])
        start = self._step
        self._start_measuring(start)
        more = exchange.broadcast_numbers([self._steps_left(start)])[0]
        if more < 1:
            raise ConfigError(
                f"train.budget={self._config.train.budget} is used up before the first step: {self._spent():.0f} s for reading the "
                f"corpus and compiling, {step:.2g} s a step, and evaluating and saving at the end. Increase it; the corpus is kept, so the "
                "next start is faster."
            )
        check_warmup(self._config, start + more)
        self._plan(0, start + more)

    @override
    def update(self, step: int, state: State) -> bool:
        if step - self._step < self._every or step >= self.end:
            return False
        jax.block_until_ready(state["step"])  # time only finished steps
        self._history.write(step, now=False)  # so that a crash before the next line of metrics loses no spent time
        self._measure(step)
        end = step + max(1, self._steps_left(step))
        # The tolerance is larger early on, when fluctuations have time to even out.
        tolerance = max(1.0, _TOLERANCE * self._budget, _REMAINING_TOLERANCE * self._seconds_left())
        off = abs(end - self.end) * self._costs["step"] > tolerance
        end = exchange.broadcast_numbers([end if off else self.end])[0]
        if end == self.end:
            return False
        self._plan(step, end)
        return True

    def _plan(self, step: int, end: int) -> None:
        self._plans = [*self._plans, (step, end)]
        self._apply_plan()
        each = {name: round(seconds, 6) for name, seconds in self._costs.items()}
        if jax.process_index() == 0:
            plans = [{"step": at, "end": to} for at, to in self._plans]
            content = {"budget": self._config.train.budget, "num_steps": end, "plans": plans, "seconds_each": each}
            content |= {"earlier": self._earlier} if self._earlier else {}
            write_atomically(self._path, json.dumps(content, indent=1) + "\n")
        if abs(end - self._reported_end) <= 0.03 * end:
            return  # too small a change for the log
        instead = f" instead of {self._reported_end:,}" if self._reported_end else ""
        self._reported_end = end
        self._log(
            f"budget: {end:,} steps{instead} in "
            f"{self._config.train.budget}, by {each['step']:.3g} s a step, {each['eval']:.2g} s an evaluation; {self._seconds_left():.0f} s are left"
        )

    def _apply_plan(self) -> None:
        """Set the end and the schedule's arguments from the last plan."""
        self.end = self._plans[-1][1]
        self._every = max(1, min(self._config.logging.every_steps, self.end // _CHECKS))
        self.schedule_args = (schedule_position(self._plans),)
        self.device_args = tuple(jax.device_put(x, self._sharding) for x in self.schedule_args)

    def _spent(self) -> float:
        return self._history.spent + time.monotonic() - self._account.born

    def _seconds_left(self) -> float:
        return self._budget - self._spent()

    def _steps_left(self, step: int) -> int:
        """Compute how many steps fit after `step`, with their evaluations and checkpoints and those at the end."""
        costs, config = self._costs, self._config
        seconds = self._seconds_left()
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

    def _start_measuring(self, step: int) -> None:
        """Start measuring at this step."""
        self._step, self._lost = step, dict(self._account.lost)
        seconds = self._account.account()
        self._in_steps = seconds["steps"] + seconds["data"]

    def _measure(self, step: int) -> None:
        """Update the costs of steps, evaluations and checkpoints since the last measurement."""
        before, lost, since = self._in_steps, self._lost, self._step
        self._start_measuring(step)
        seconds = self._in_steps - before
        # Average over about a quarter of what is left: slow to react at first, quick at the end.
        self._recent *= np.exp(-seconds / max(self._seconds_left() / 4, 1e-3))
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
    config: Config,
    workdir: pathlib.Path,
    start: int,
    account: TimeAccount,
    history: RunHistory,
    sharding: Any,
    log: Log,
) -> StepBudget:
    """Make the budget of a run: see `TimeBudget` for a budget of time, and for the arguments."""
    if config_lib.has_time_budget(config):
        return TimeBudget(config, workdir, start, account, history, sharding, log)
    return StepBudget(config.train.num_steps)


def schedule_position(plans: Iterable[tuple[int, int]]) -> np.ndarray:
    """Map the steps of the last plan to the schedule: (step, its position there, positions per step, length of the schedule).

    The schedule has the length of the first plan. Each later plan (step, end) stretches the rest of the schedule over the steps
    from `step` to `end`. For example, plans [(0, 100), (50, 150)] give (50, 50, 0.5, 100): from step 50 on, each step moves half a
    position.
    """
    (at, length), *later = plans
    position, pace = 0.0, 1.0
    for step, end in later:
        position, at = position + (step - at) * pace, step
        pace = max(0.0, length - position) / (end - step)
    return np.array([at, position, pace, length], np.float32)


def _of_process_0(plans: Sequence[_Plan]) -> list[tuple[int, int]]:
    """Broadcast (step, end) of process 0's plans to all processes."""
    numbers = [number for plan in plans for number in (plan["step"], plan["end"])]
    count = 2 * exchange.broadcast_numbers([len(plans)])[0]
    shared = exchange.broadcast_numbers(numbers if len(numbers) == count else [0] * count)
    return list(zip(shared[::2], shared[1::2], strict=True))


def _seconds(take: Callable[[], Any], count: int) -> float:
    """Time `count` steps; return the mean seconds of one."""
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
    """Read budget.json, {} if it does not exist; raise a CheckpointError if it is damaged, because it decides the learning rate."""
    if not path.exists():
        return {}
    fix = "Restore it, or delete it: the run then continues as if it had begun with this start."
    content = read_json(path, error=CheckpointError, fix=fix)
    check_fields(content, _FIELDS, str(path), error=CheckpointError, fix=fix)
    steps = [plan["step"] for plan in content.get("plans") or ()]
    if steps != sorted(set(steps)) or any(plan["end"] <= plan["step"] for plan in content.get("plans") or ()):
        raise CheckpointError(f"{path}: its plans do not follow one another. {fix}")
    return {name: value for name, value in content.items() if value is not None}

"""Resuming a run with another end, later or earlier than before.

Parameters, optimizer, position in the data and the window of metrics continue as after any restart; only the learning rate depends on
the end. It is always that of a run that had the new end from its first step, so it is a function of the config only, however often the
end was moved. With rates that do not depend on the end (constant, inverse_sqrt, wsd before its decay, a warm-up in steps) the extended
run equals an uninterrupted longer one, bit for bit; other rates (linear, cosine, polynomial) jump from the old curve to the new one at
the step where the run resumes.
"""

from __future__ import annotations

import pathlib
from typing import Any

from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.errors import CheckpointError
from lm_research.run.run_directory import LENGTH_KEYS, Changes
from lm_research.training.schedules import make_schedule


def check(workdir: pathlib.Path, config: Config, done: int) -> None:
    """Raise a CheckpointError if the run has already passed the configured end."""
    if not config_lib.has_time_budget(config) and config.train.num_steps < done:
        key = "budget" if config.train.budget else "num_epochs" if config.train.num_epochs else "num_steps"
        raise CheckpointError(
            f"train.{key}={getattr(config.train, key)} ends after {config.train.num_steps:,} steps, but the run in {workdir} has already done "
            f"{done:,} steps. Set that many or more, or start in a new --workdir."
        )


def describe_changes(config: Config, changed: Changes, done: int) -> str:
    """Describe what has changed since a run's last start, and the effect on the learning rate; "" if nothing has.

    Args:
      config: of this start, its number of steps resolved.
      changed: the result of `run_directory.check_config`.
      done: steps that the run has done.
    """
    lines = [f"changed: {name} was {before!r}, is {now!r}" for name, (before, now) in changed.items()]
    ends = {name: before for name, (before, _) in changed.items() if name in LENGTH_KEYS and name.startswith("train.")}
    if ends and done:
        lines.append(_of_the_rate(config, ends, done))
    return "\n".join(lines)


def _of_the_rate(config: Config, ends: dict[str, Any], done: int) -> str:
    if config_lib.has_time_budget(config):
        return (
            f"longer: the run continues from step {done:,} until {config.train.budget} are used up. The learning rate of a step is that of a "
            "run that was planned to end there from its first step."
        )
    steps, rate = config.train.num_steps, make_schedule(config)
    line = (
        f"longer: the run continues from step {done:,} to {steps:,}. The learning rate of a step ({config.schedule.name}) is that of a run of "
        f"{steps:,} steps from its first"
    )
    before = config_lib.replace(config, train={name.removeprefix("train."): value for name, value in ends.items()})
    if done < steps and not config_lib.has_time_budget(before):
        now, then = float(rate(done)), float(make_schedule(before)(done))
        line += f": {now:.3g} in step {done + 1:,}, " + (
            "as before" if now == then else f"where it would have been {then:.3g}"
        )
    return line + "."

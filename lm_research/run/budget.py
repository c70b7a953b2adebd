"""How many steps a run takes: as told, or as a budget of FLOPs or tokens or a number of epochs allows.

All of these are arithmetic, and settle train.num_steps before anything runs. A budget of time is in time_budget.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.errors import ConfigError
from lm_research.training.state import State

NO_END = 2**31 - 2


def resolve_steps(config: Config, num_examples: int) -> Config:
    """Turns train.num_epochs, if given, into train.num_steps."""
    if not config.train.num_epochs:
        return config
    steps = math.ceil(config.train.num_epochs * num_examples / config.train.batch_size)
    return config_lib.replace(config, train={"num_steps": steps})


def resolve_budget(config: Config, tokens: int, flops: float) -> Config:
    """Turns a budget of FLOPs or tokens into train.num_steps, rounded down.

    Args:
      config: with or without a budget; one of time stays as it is.
      tokens: positions of the rows of a step, padding included.
      flops: floating-point operations of a step.

    Raises:
      ConfigError: the budget is less than one step, or shorter than the warm-up.
    """
    budget = config_lib.parse_budget(config)
    if budget is None or budget.unit == "seconds":
        return config
    each = {"tokens": tokens, "flops": flops}[budget.unit]
    steps = min(int(budget.amount / each), NO_END)
    if not steps:
        raise ConfigError(
            f"train.budget={config.train.budget} is less than one step, which takes {each:.3g} {budget.unit}. Give more, or "
            "make train.batch_size smaller."
        )
    check_warmup(config, steps)
    return config_lib.replace(config, train={"num_steps": steps})


def check_warmup(config: Config, steps: int) -> None:
    """Raises a ConfigError if a budget ends before the warm-up does."""
    if config.schedule.warmup_steps > steps:
        raise ConfigError(
            f"train.budget={config.train.budget} makes {steps:,} steps here, fewer than schedule.warmup_steps="
            f"{config.schedule.warmup_steps}: the peak learning rate would never be reached. Give more, shorten the warm-up, or set "
            "schedule.warmup_ratio instead."
        )


class StepBudget:
    """The end of a run that is known before it begins.

    Attributes:
      end: the last step.
      last: no run with this budget can go further.
      schedule_args: what `schedule` takes besides the step: nothing.
      device_args: the same on the devices, for the train step.
    """

    def __init__(self, end: int) -> None:
        self.end = self.last = end
        self.schedule_args: tuple[np.ndarray, ...] = ()
        self.device_args: tuple[jax.Array, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """Whether it has yet to be calibrated."""
        return False

    def calibrate(self, take: Callable[[], Any], eval_batches: int) -> None: ...

    def update(self, step: int, state: State) -> bool:
        """Looks at the clock after a step where it is time to; whether the end has moved."""
        return False

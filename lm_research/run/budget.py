"""The number of steps of a run: given, or as many as a budget of FLOPs or tokens or a number of epochs allows.

All of these are arithmetic and resolve train.num_steps before anything runs. Budgets of time are in time_budget.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.data.mixture import Mixture
from lm_research.data.sampler import Examples
from lm_research.errors import ConfigError
from lm_research.training.state import State

NO_END = 2**31 - 2
_TOLERANCE = 1.01  # of the passes over one source of a mixture


def resolve_steps(config: Config, num_examples: int) -> Config:
    """Convert train.num_epochs, if given, to train.num_steps."""
    if not config.train.num_epochs:
        return config
    return config_lib.replace(config, train={"num_steps": _steps_of(config.train.num_epochs, num_examples, config)})


def _steps_of(passes: float, num_examples: int, config: Config) -> int:
    """Count the steps of a number of passes, the last of which may begin another one."""
    return math.ceil(passes * num_examples / config.train.batch_size)


def resolve_budget(config: Config, tokens: int, flops: float) -> Config:
    """Convert a budget of FLOPs or tokens to train.num_steps, rounded down.

    Args:
      config: with or without a budget; a budget of time is left unchanged.
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
            f"train.budget={config.train.budget} is less than one step, which takes {each:.3g} {budget.unit}. Increase it, or "
            "lower train.batch_size."
        )
    check_warmup(config, steps)
    return config_lib.replace(config, train={"num_steps": steps})


def check_epochs(config: Config, examples: Examples) -> None:
    """Raise a ConfigError if a run, whose steps are resolved, makes more passes than train.max_epochs, a part of a step aside.

    Of a mixture this also holds for each source, to 1%: its examples are not quite in proportion to the weights.
    """
    most, train, num_examples = config.train.max_epochs, config.train, examples.num_examples
    if not most:
        return
    if config_lib.has_time_budget(config):
        raise ConfigError(
            f"train.budget={train.budget} is a time, which does not say how many passes are made, but train.max_epochs={most:g} limits them. "
            "Use another budget, such as --config.train.num_epochs, or remove the limit."
        )
    limit = _steps_of(most, num_examples, config)
    if train.num_steps > limit:
        raise ConfigError(
            f"{train.num_steps:,} steps of {train.batch_size:,} examples read the {num_examples:,} training examples "
            f"{train.num_steps * train.batch_size / num_examples:.6g} times, but train.max_epochs={most:g} allows {limit:,} steps. Train "
            "shorter, or remove the limit."
        )
    if isinstance(examples, Mixture):
        passes = examples.epochs(train.num_steps - 1)
        name = max(passes, key=passes.__getitem__)
        if passes[name] > _TOLERANCE * most:
            raise ConfigError(
                f"{train.num_steps:,} steps read the source {name} of data.mixture {passes[name]:.3g} times, but train.max_epochs={most:g}. Train "
                "shorter, lower its weight in data.mixture and data.mixture_stages, or remove the limit."
            )


def check_warmup(config: Config, steps: int) -> None:
    """Raise a ConfigError if a budget ends before the warm-up does."""
    if config.schedule.warmup_steps > steps:
        raise ConfigError(
            f"train.budget={config.train.budget} allows {steps:,} steps here, fewer than schedule.warmup_steps="
            f"{config.schedule.warmup_steps}: the learning rate would never reach its peak. Increase the budget, shorten the warm-up, or "
            "set schedule.warmup_ratio instead."
        )


class StepBudget:
    """A number of steps that is fixed before the run begins.

    Attributes:
      end: the last step.
      last: an upper bound of `end`.
      schedule_args: the schedule's arguments after the step; here none.
      device_args: the same arguments on the devices, for the train step.
    """

    def __init__(self, end: int) -> None:
        self.end = self.last = end
        self.schedule_args: tuple[np.ndarray, ...] = ()
        self.device_args: tuple[jax.Array, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` must be called before the run."""
        return False

    def calibrate(self, take: Callable[[], Any], eval_batches: int) -> None:
        """Set the end from timed steps; here nothing, as it is fixed."""

    def update(self, step: int, state: State) -> bool:
        """Adjust the end after a step, if it is due; return whether it has moved."""
        return False

"""Learning rate schedules: one function each, from a point of the schedule to a fraction of the peak.

Another package adds one in the same way:

    @SCHEDULES.register("name", SettingsOfIt)
    def name(settings, at: Point) -> jax.Array: ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm_research.config import Config, ScheduleConfig, key, registries
from lm_research.config.variants import Variants

Schedule = Callable[..., jax.Array]  # (step, position in a budget of time) -> learning rate


class Point(NamedTuple):
    """A point of a schedule: the step, the numbers of all steps and of warm-up steps, and the fraction `done` of the steps after those."""

    step: jax.Array
    total: int | jax.Array
    warmup: int | jax.Array
    done: jax.Array


SCHEDULES: Variants[Callable[[Any, Point], jax.Array]] = registries.SCHEDULES


def warmup_steps(config: Config) -> int:
    """Compute the number of linear warm-up steps, given as a number or as a fraction of all steps."""
    if config.schedule.warmup_ratio:
        return round(config.schedule.warmup_ratio * config.train.num_steps)
    return config.schedule.warmup_steps


def make_schedule(config: Config) -> Schedule:
    """Make the function from a step, counted from 0, to its learning rate.

    The rate rises linearly so that step `warmup - 1` is the first at the peak, then follows schedule.name down to
    end_ratio x peak, which it reaches as the last step ends. With a budget of time, the second argument is
    `time_budget.schedule_position`. `peak` replaces optimizer.learning_rate: as an argument of a jitted function it lets one program serve
    all rates.
    """
    shape = SCHEDULES.get(config.schedule.name)

    def schedule(step: jax.Array, position: jax.Array | None = None, peak: jax.Array | None = None) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        total: int | jax.Array = config.train.num_steps
        warmup: int | jax.Array = warmup_steps(config)
        if position is not None:
            at, start, pace, total = position
            step = start + (step - at) * pace
            if config.schedule.warmup_ratio:
                warmup = jnp.round(config.schedule.warmup_ratio * total)
        done = jnp.clip((step - warmup) / larger(1, total - warmup), 0.0, 1.0)
        rise = jnp.minimum(1.0, (step + 1.0) / larger(1, warmup))
        fraction = jnp.where(step < warmup, rise, shape(config.schedule, Point(step, total, warmup, done)))
        return (config.optimizer.learning_rate if peak is None else peak) * fraction

    return schedule


def larger(a: float, b: float | jax.Array) -> float | jax.Array:
    """Return the larger of two numbers, as a Python number if both are, so that constants are rounded only once."""
    return jnp.maximum(a, b) if isinstance(b, jax.Array) else max(a, b)


@dataclasses.dataclass(frozen=True)
class EndingConfig(ScheduleConfig):
    """Settings of schedules that decay to a fraction of the peak."""

    end_ratio: float = key(0.0, "Final learning rate as a fraction of the peak.", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class PolynomialConfig(EndingConfig):
    """Settings of polynomial."""

    power: float = key(2.0, "Exponent of the polynomial; 1 is linear.", low=0.01, high=10.0)


@dataclasses.dataclass(frozen=True)
class WSDConfig(EndingConfig):
    """Settings of wsd."""

    decay_ratio: float = key(0.1, "Fraction of num_steps over which the rate decays.", low=0.0, high=1.0)


@SCHEDULES.register("constant")
def constant(settings: ScheduleConfig, at: Point) -> jax.Array:
    """The peak throughout."""
    return jnp.ones_like(at.done)


@SCHEDULES.register("linear", EndingConfig)
def linear(settings: EndingConfig, at: Point) -> jax.Array:
    """Linear decay."""
    return 1.0 - (1.0 - settings.end_ratio) * at.done


@SCHEDULES.register("cosine", EndingConfig)
def cosine(settings: EndingConfig, at: Point) -> jax.Array:
    """Half a period of a cosine (Loshchilov & Hutter 2016, without restarts)."""
    return settings.end_ratio + (1.0 - settings.end_ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * at.done))


@SCHEDULES.register("polynomial", PolynomialConfig)
def polynomial(settings: PolynomialConfig, at: Point) -> jax.Array:
    """A power of the remaining fraction."""
    return settings.end_ratio + (1.0 - settings.end_ratio) * (1.0 - at.done) ** settings.power


@SCHEDULES.register("inverse_sqrt")
def inverse_sqrt(settings: ScheduleConfig, at: Point) -> jax.Array:
    """sqrt(warm-up / steps so far), as in Vaswani et al. 2017."""
    return jnp.sqrt(larger(1, at.warmup) / (at.step + 1.0))


@SCHEDULES.register("wsd", WSDConfig)
def wsd(settings: WSDConfig, at: Point) -> jax.Array:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then linear decay over the last decay_ratio of the steps."""
    decay = larger(1.0, settings.decay_ratio * at.total)
    return 1.0 - (1.0 - settings.end_ratio) * jnp.clip((at.step - (at.total - decay)) / decay, 0.0, 1.0)

"""Learning-rate schedules: one function each, from where a step lies to its share of the peak.

Another package adds one by the same line:

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

Schedule = Callable[..., jax.Array]  # of a step, and of where it lies in a budget of time if there is one


class Point(NamedTuple):
    """Where a step lies: how many are done, of how many, and how many of these are warm-up; `done` is the share of the rest."""

    step: jax.Array
    total: int | jax.Array
    warmup: int | jax.Array
    done: jax.Array


SCHEDULES: Variants[Callable[[Any, Point], jax.Array]] = registries.SCHEDULES


def warmup_steps(config: Config) -> int:
    """Steps of linear warm-up, given as steps or as a share of all steps."""
    if config.schedule.warmup_ratio:
        return round(config.schedule.warmup_ratio * config.train.num_steps)
    return config.schedule.warmup_steps


def make_schedule(config: Config) -> Schedule:
    """Learning rate of each step, counted from 0.

    Rises linearly so that step `warmup - 1` is the first at the peak, then follows schedule.name down to
    end_ratio x peak, reached as the last step ends. With a budget of time a second argument, `budget.position`, says where
    the step lies on a schedule of which length. `peak` replaces optimizer.learning_rate: as an argument of a jitted function it lets
    one program serve all rates.
    """
    shape = SCHEDULES.get(config.schedule.name)

    def schedule(step: jax.Array, position: jax.Array | None = None, peak: jax.Array | None = None) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        total: int | jax.Array = config.train.num_steps
        warmup: int | jax.Array = warmup_steps(config)
        if position is not None:
            at, place, pace, total = position
            step = place + (step - at) * pace
            if config.schedule.warmup_ratio:
                warmup = jnp.round(config.schedule.warmup_ratio * total)
        done = jnp.clip((step - warmup) / larger(1, total - warmup), 0.0, 1.0)
        rise = jnp.minimum(1.0, (step + 1.0) / larger(1, warmup))
        share = jnp.where(step < warmup, rise, shape(config.schedule, Point(step, total, warmup, done)))
        return (config.optimizer.learning_rate if peak is None else peak) * share

    return schedule


def larger(a: float, b: float | jax.Array) -> float | jax.Array:
    """The larger of two numbers; Python's of Python's, so that constants are rounded once."""
    return jnp.maximum(a, b) if isinstance(b, jax.Array) else max(a, b)


@dataclasses.dataclass(frozen=True)
class EndingConfig(ScheduleConfig):
    """Of a rate that falls to a share of the peak."""

    end_ratio: float = key(0.0, "Final learning rate as a fraction of the peak.", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class PolynomialConfig(EndingConfig):
    power: float = key(2.0, "Exponent of the polynomial; 1 is linear.", low=0.01, high=10.0)


@dataclasses.dataclass(frozen=True)
class WSDConfig(EndingConfig):
    decay_ratio: float = key(0.1, "Fraction of num_steps over which the rate decays.", low=0.0, high=1.0)


@SCHEDULES.register("constant")
def constant(settings: ScheduleConfig, at: Point) -> jax.Array:
    """The peak."""
    return jnp.ones_like(at.done)


@SCHEDULES.register("linear", EndingConfig)
def linear(settings: EndingConfig, at: Point) -> jax.Array:
    """A straight line."""
    return 1.0 - (1.0 - settings.end_ratio) * at.done


@SCHEDULES.register("cosine", EndingConfig)
def cosine(settings: EndingConfig, at: Point) -> jax.Array:
    """Half a period of a cosine (Loshchilov & Hutter 2016, without restarts)."""
    return settings.end_ratio + (1.0 - settings.end_ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * at.done))


@SCHEDULES.register("polynomial", PolynomialConfig)
def polynomial(settings: PolynomialConfig, at: Point) -> jax.Array:
    """A power of the share that is left."""
    return settings.end_ratio + (1.0 - settings.end_ratio) * (1.0 - at.done) ** settings.power


@SCHEDULES.register("inverse_sqrt")
def inverse_sqrt(settings: ScheduleConfig, at: Point) -> jax.Array:
    """sqrt(warm-up / steps so far), as Vaswani et al. 2017."""
    return jnp.sqrt(larger(1, at.warmup) / jnp.maximum(at.step + 1.0, larger(1, at.warmup)))


@SCHEDULES.register("wsd", WSDConfig)
def wsd(settings: WSDConfig, at: Point) -> jax.Array:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then a straight line in the last decay_ratio of the steps."""
    decay = larger(1.0, settings.decay_ratio * at.total)
    return 1.0 - (1.0 - settings.end_ratio) * jnp.clip((at.step - (at.total - decay)) / decay, 0.0, 1.0)

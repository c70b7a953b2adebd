"""Learning-rate schedules, and optimizers from optax.

adamw      Loshchilov & Hutter 2017
adafactor  Shazeer & Stern 2018, without its relative step sizes: the schedule's rate counts
lamb       You et al. 2019
lion       Chen et al. 2023
muon       Jordan et al. 2024 of hidden matrices, AdamW of the rest (training/muon.py)
sgd        with momentum
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm_research.config import Config, OptimizerConfig
from lm_research.training import muon

Schedule = Callable[..., jax.Array]  # of a step, and of where it lies in a budget of time if there is one


def warmup_steps(config: Config) -> int:
    """Steps of linear warm-up, given as steps or as a share of all steps."""
    if config.schedule.warmup_ratio:
        return round(config.schedule.warmup_ratio * config.train.num_steps)
    return config.schedule.warmup_steps


def make_schedule(config: Config) -> Schedule:
    """Learning rate of each step, counted from 0.

    Rises linearly so that step `warmup - 1` is the first at the peak, then follows schedule.name down to
    end_ratio x peak, reached as the last step ends. inverse_sqrt is Vaswani et al. 2017's: peak x sqrt(warmup / steps so
    far); wsd is Hu et al. 2024's warm-up, stable, decay. With a budget of time a second argument, `budget.position`, says where
    the step lies on a schedule of which length. `peak` replaces optimizer.learning_rate: as an argument of a jitted function it lets
    one program serve all rates.
    """
    end, power = config.schedule.end_ratio, config.schedule.power

    def schedule(step: jax.Array, position: jax.Array | None = None, peak: jax.Array | None = None) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        total, warmup, larger = config.train.num_steps, warmup_steps(config), max
        if position is not None:
            at, place, pace, total = position
            step, larger = place + (step - at) * pace, jnp.maximum
            if config.schedule.warmup_ratio:
                warmup = jnp.round(config.schedule.warmup_ratio * total)
        decay = larger(1.0, config.schedule.decay_ratio * total)
        done = jnp.clip((step - warmup) / larger(1, total - warmup), 0.0, 1.0)
        shape = {
            "constant": jnp.ones_like(done),
            "linear": 1.0 - (1.0 - end) * done,
            "cosine": end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "polynomial": end + (1.0 - end) * (1.0 - done) ** power,
            "inverse_sqrt": jnp.sqrt(larger(1, warmup) / jnp.maximum(step + 1.0, larger(1, warmup))),
            "wsd": 1.0 - (1.0 - end) * jnp.clip((step - (total - decay)) / decay, 0.0, 1.0),
        }[config.schedule.name]
        rise = jnp.minimum(1.0, (step + 1.0) / larger(1, warmup))
        return (config.optimizer.learning_rate if peak is None else peak) * jnp.where(step < warmup, rise, shape)

    return schedule


def decays(path: tuple, leaf: Any) -> bool:
    """Whether weight decay applies: on kernels and embedding tables, not on biases and norms."""
    return path[-1].key not in ("bias", "scale")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """From gradients to the direction of the update; the step multiplies it by minus the learning rate.

    Keeping the learning rate outside leaves moments and one counter as the optimizer's only state.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    scaled = {
        "adamw": lambda: [adam],
        "adafactor": lambda: [optax.scale_by_factored_rms(), per_layer(lambda u, p: u / jnp.maximum(1.0, rms(u)))],
        "lamb": lambda: [adam],
        "lion": lambda: [optax.scale_by_lion(config.beta1, config.beta2)],
        "muon": lambda: [muon.scale_by_muon_and_adam(config)],
        "sgd": lambda: [optax.trace(config.beta1)],
    }[config.name]()
    if config.clip_norm:
        scaled.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        mask = lambda params: jax.tree_util.tree_map_with_path(decays, params)  # noqa: E731
        scaled.append(optax.add_decayed_weights(config.weight_decay, mask))
    if config.name == "lamb":
        scaled.append(per_layer(trust))
    if config.name == "muon":
        scaled.append(muon.adams_rate(config))
    return optax.chain(*scaled)


def per_layer(change: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """`change(update, parameter)` of each array by itself; of stacked layers, of each layer by itself, as the papers mean it."""

    def one(path: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
        stacked = any(key.key == "layers" for key in path)
        return (jax.vmap(change) if stacked else change)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(one, updates, params))


def rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def trust(update: jax.Array, param: jax.Array) -> jax.Array:
    """LAMB's update: as long as the parameter is, where neither is zero."""
    size, norm = jnp.linalg.norm(param), jnp.linalg.norm(update)
    return update * jnp.where((size > 0) & (norm > 0), size / jnp.where(norm > 0, norm, 1.0), 1.0)

"""Learning-rate schedules and AdamW (Loshchilov & Hutter 2017), from optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm_research.config import Config, OptimizerConfig

Schedule = Callable[[jax.Array], jax.Array]


def warmup_steps(config: Config) -> int:
    """Steps of linear warm-up, given as steps or as a share of all steps."""
    if config.schedule.warmup_ratio:
        return round(config.schedule.warmup_ratio * config.train.num_steps)
    return config.schedule.warmup_steps


def make_schedule(config: Config) -> Schedule:
    """Learning rate of each step, counted from 0.

    Rises linearly so that step `warmup - 1` is the first at the peak, then follows schedule.name down to
    end_ratio x peak, reached as the last step ends.
    """
    peak, total, warmup = config.optimizer.learning_rate, config.train.num_steps, warmup_steps(config)
    end = config.schedule.end_ratio

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / max(1, total - warmup), 0.0, 1.0)
        shape = {
            "constant": jnp.ones_like(done),
            "linear": 1.0 - (1.0 - end) * done,
            "cosine": end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        }[config.schedule.name]
        rise = jnp.minimum(1.0, (step + 1.0) / max(1, warmup))
        return peak * jnp.where(step < warmup, rise, shape)

    return schedule


def decays(path: tuple, leaf: Any) -> bool:
    """Whether weight decay applies: on kernels and embedding tables, not on biases and norms."""
    return path[-1].key not in ("bias", "scale")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """From gradients to the direction of the update; the step multiplies it by minus the learning rate.

    Keeping the learning rate outside leaves moments and one counter as the optimizer's only state.
    """
    transforms = []
    if config.clip_norm:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    transforms.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    if config.weight_decay:
        mask = lambda params: jax.tree_util.tree_map_with_path(decays, params)  # noqa: E731
        transforms.append(optax.add_decayed_weights(config.weight_decay, mask))
    return optax.chain(*transforms)

"""Adafactor (Shazeer & Stern 2018), without its relative step sizes: the schedule sets the rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from lm_research.config import OptimizerConfig
from lm_research.training.optimizer import OPTIMIZERS, chain, per_layer


@OPTIMIZERS.register("adafactor")
def adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adafactor: a factored second moment, no momentum."""
    clip = per_layer(lambda update, param: update / jnp.maximum(1.0, rms(update)))
    return chain(config, optax.scale_by_factored_rms(), clip)


def rms(x: jax.Array) -> jax.Array:
    """Compute the root mean square of an array."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))

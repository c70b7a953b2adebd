"""LAMB (You et al. 2019): AdamW's update of each layer, scaled to the norm of its parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from lm_research.training.optimizer import OPTIMIZERS, AdamConfig, chain, per_layer


@OPTIMIZERS.register("lamb", AdamConfig)
def lamb(config: AdamConfig) -> optax.GradientTransformation:
    """LAMB: AdamW's update of each layer, scaled to the norm of the layer's parameters."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    return optax.chain(chain(config, adam), per_layer(trust))


def trust(update: jax.Array, param: jax.Array) -> jax.Array:
    """Scale the update to the norm of the parameter, unless either is zero."""
    size, norm = jnp.linalg.norm(param), jnp.linalg.norm(update)
    return update * jnp.where((size > 0) & (norm > 0), size / jnp.where(norm > 0, norm, 1.0), 1.0)

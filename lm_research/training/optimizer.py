"""Functions that optimizers have in common, and their registry.

Each optimizer is a function in optimizers/ from its settings to an optax chain, and registers itself:

    @OPTIMIZERS.register("name", SettingsOfIt)
    def name(settings) -> optax.GradientTransformation: ...

The chain turns gradients into the direction of the update; the step multiplies it by minus the learning rate. The rate is outside of the
chain so that it can depend on the budget and differ between parameters with any optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from lm_research.config import OptimizerConfig, key, registries
from lm_research.config.variants import Variants


@dataclasses.dataclass(frozen=True)
class AdamConfig(OptimizerConfig):
    """Settings of optimizers that scale by Adam's moments."""

    beta1: float = key(0.9, "Decay rate of the first moment.", low=0.0, high=0.999999)
    beta2: float = key(0.999, "Decay rate of the second moment.", low=0.0, high=0.9999999)
    epsilon: float = key(1e-6, "Constant added to the root of the second moment.", low=0.0, high=1e6)


OPTIMIZERS: Variants[Callable[[Any], optax.GradientTransformation]] = registries.OPTIMIZERS


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Make the optimizer of a run."""
    return OPTIMIZERS.get(config.name)(config)


def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    """Decide whether weight decay applies: to kernels and embedding tables, not to biases and norms."""
    return path[-1].key not in ("bias", "scale")


def chain(config: OptimizerConfig, *scaled: optax.GradientTransformation) -> optax.GradientTransformation:
    """Chain clipping to clip_norm, the given transformations, and decoupled weight decay."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(decays, params)

    decay = [optax.add_decayed_weights(config.weight_decay, mask)] if config.weight_decay else []
    return optax.chain(*clip, *scaled, *decay)


def per_layer(change: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Apply `change(update, parameter)` to each array separately and, as in the papers, to each layer of a stack separately."""

    def one(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        stacked = any(key.key == "layers" for key in path)
        return (jax.vmap(change) if stacked else change)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(one, updates, params))

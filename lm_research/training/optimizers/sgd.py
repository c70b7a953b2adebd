"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import dataclasses

import optax

from lm_research.config import OptimizerConfig, key
from lm_research.training.optimizer import OPTIMIZERS, chain


@dataclasses.dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Settings of stochastic gradient descent."""

    beta1: float = key(0.9, "Momentum.", low=0.0, high=0.999999)


@OPTIMIZERS.register("sgd", SGDConfig)
def sgd(config: SGDConfig) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum."""
    return chain(config, optax.trace(config.beta1))

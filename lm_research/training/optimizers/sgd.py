"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import optax

from lm_research.config import OptimizerConfig
from lm_research.training.optimizer import OPTIMIZERS, chain


@OPTIMIZERS.register("sgd")
def sgd(config: OptimizerConfig) -> optax.GradientTransformation:
    return chain(config, optax.trace(config.beta1))

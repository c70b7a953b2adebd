"""AdamW (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import optax

from lm_research.config import OptimizerConfig
from lm_research.training.optimizer import OPTIMIZERS, chain


@OPTIMIZERS.register("adamw")
def adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return chain(config, optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))

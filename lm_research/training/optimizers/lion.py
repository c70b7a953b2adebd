"""Lion (Chen et al. 2023)."""

from __future__ import annotations

import optax

from lm_research.config import OptimizerConfig
from lm_research.training.optimizer import OPTIMIZERS, chain


@OPTIMIZERS.register("lion")
def lion(config: OptimizerConfig) -> optax.GradientTransformation:
    return chain(config, optax.scale_by_lion(config.beta1, config.beta2))

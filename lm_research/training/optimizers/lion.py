"""Lion (Chen et al. 2023)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optax

from lm_research.config import OptimizerConfig, key
from lm_research.training.optimizer import OPTIMIZERS, chain


@dataclasses.dataclass(frozen=True)
class LionConfig(OptimizerConfig):
    """Settings of Lion."""

    unit_updates: ClassVar[bool] = True

    beta1: float = key(0.9, "Weight of the momentum in the update.", low=0.0, high=0.999999)
    beta2: float = key(0.999, "Decay rate of the momentum.", low=0.0, high=0.9999999)


@OPTIMIZERS.register("lion", LionConfig)
def lion(config: LionConfig) -> optax.GradientTransformation:
    """Lion: the sign of a momentum."""
    return chain(config, optax.scale_by_lion(config.beta1, config.beta2))

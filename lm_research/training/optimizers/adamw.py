"""AdamW (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optax

from lm_research.training.optimizer import OPTIMIZERS, AdamConfig, chain


@dataclasses.dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """Settings of AdamW."""

    unit_updates: ClassVar[bool] = True


@OPTIMIZERS.register("adamw", AdamWConfig)
def adamw(config: AdamWConfig) -> optax.GradientTransformation:
    """AdamW: Adam with decoupled weight decay."""
    return chain(config, optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))

"""The loss of any objective plus one that balances the use of experts (Fedus et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.load_balancing import balance_loss, router_loads
from lm_research.objectives.base import Batch, Objective, Sums

NAME = "expert_balance"


class BalancedObjective(Objective):
    """An objective with one more term, `expert_balance`: the weighted load-balancing loss of each micro-batch.

    Micro-batches count in proportion to their real tokens. The layers of a stack are balanced together, as in transformers.
    """

    def __init__(self, objective: Objective, weight: float) -> None:
        self.inner, self.weight = objective, weight
        self.normalizer_names = objective.normalizer_names
        self.metrics: Mapping[str, str] = {**objective.metrics, NAME: "real"}
        self.loss_terms = (*objective.loss_terms, NAME)
        self.token_loss_name, self.target_fraction = objective.token_loss_name, objective.target_fraction

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        return self.inner.normalizers(batch)

    @override
    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return self.inner.targets(batch)

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        with router_loads() as loads:
            sums = self.inner.metric_sums(model, batch, key)
        return sums | {NAME: self.weight * balance_loss(loads) * self.normalizers(batch)["real"]}


def balanced(objective: Objective, arch: Architecture) -> Objective:
    """The objective that trains an architecture: with the additional term if `arch.balance_weight` is above 0."""
    weight = arch.balance_weight or (arch.encoder.balance_weight if arch.encoder is not None else 0.0)
    return BalancedObjective(objective, weight) if weight else objective

"""The registries of the variants that config sections choose from.

The packages of the variants annotate them with their types: `OBJECTIVES: Variants[type[Objective]]`.
"""

from __future__ import annotations

import importlib
from typing import Any

from lm_research.config.learning import ObjectiveConfig, OptimizerConfig, ScheduleConfig
from lm_research.config.model import ModelConfig
from lm_research.config.task import TaskConfig
from lm_research.config.variants import Variants


class _Families(Variants[Any]):
    """Registry of families, including encoder-decoder pairs of two families, named ENCODER2DECODER."""

    def _entry(self, name: str) -> tuple[Any, type | None]:
        if name not in self._found:
            for place in range(1, len(name) - 1):
                if name[place] == "2":  # a name of one family may have this digit too
                    pair = importlib.import_module(self._package).pair_of(name[:place], name[place + 1 :])
                    if pair:
                        return pair, self.base
        return super()._entry(name)


FAMILIES: Variants[Any] = _Families("model", "lm_research.models.families", chooser="family", base=ModelConfig)
OBJECTIVES: Variants[Any] = Variants("objective", "lm_research.objectives", base=ObjectiveConfig)
TASKS: Variants[Any] = Variants("task", "lm_research.tasks", base=TaskConfig)
OPTIMIZERS: Variants[Any] = Variants("optimizer", "lm_research.training.optimizers", base=OptimizerConfig)
SCHEDULES: Variants[Any] = Variants("schedule", "lm_research.training.schedules", base=ScheduleConfig)
TRACKERS: Variants[Any] = Variants("tracker", "lm_research.run.trackers")
METRICS: Variants[Any] = Variants("metric", "lm_research.metrics")

# Sections whose keys depend on the variant that they choose.
VARIANTS: dict[str, Variants[Any]] = {
    registry.section: registry for registry in (FAMILIES, OBJECTIVES, TASKS, OPTIMIZERS, SCHEDULES)
}

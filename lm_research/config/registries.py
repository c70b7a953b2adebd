"""The registries of what a section of the config chooses. Their packages type them: `OBJECTIVES: Variants[type[Objective]]`."""

from __future__ import annotations

from typing import Any

from lm_research.config.keys import ModelConfig, ObjectiveConfig, OptimizerConfig, ScheduleConfig, TaskConfig
from lm_research.config.variants import Variants

FAMILIES: Variants[Any] = Variants("model", "lm_research.models.families", chooser="family", base=ModelConfig)
OBJECTIVES: Variants[Any] = Variants("objective", "lm_research.objectives", base=ObjectiveConfig)
TASKS: Variants[Any] = Variants("task", "lm_research.tasks", base=TaskConfig)
OPTIMIZERS: Variants[Any] = Variants("optimizer", "lm_research.training.optimizers", base=OptimizerConfig)
SCHEDULES: Variants[Any] = Variants("schedule", "lm_research.training.schedules", base=ScheduleConfig)

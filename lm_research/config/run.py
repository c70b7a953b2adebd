"""The config of one run: its sections."""

from __future__ import annotations

import dataclasses
from typing import Any

from lm_research.config.corpus import CleanConfig, DataConfig, TokenizerConfig
from lm_research.config.keys import key
from lm_research.config.learning import LoraConfig, ObjectiveConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from lm_research.config.model import ModelConfig
from lm_research.config.registries import VARIANTS
from lm_research.config.running import (
    CheckpointConfig,
    EvalConfig,
    LoggingConfig,
    MeshConfig,
    ProfileConfig,
    XlaConfig,
)
from lm_research.config.task import TaskConfig


def _chosen(section: str) -> Any:
    """Return the field of a section with variants, which holds the settings of the default variant unless another is chosen."""
    registry = VARIANTS[section]
    return dataclasses.field(default_factory=lambda: registry.make(registry.default or ""))


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, resolved and checked.

    `model`, `objective`, `task`, `optimizer` and `schedule` are instances of the settings class of the variant that their `family` or `name`
    chooses, which is defined next to the variant's code. `task` is None in a run without a task.
    """

    seed: int = key(0, "Random seed of parameters, dropout, data order and masking.", low=0, high=2**31 - 1)
    plugins: tuple[str, ...] = key(
        (),
        "Python modules to import, which register objectives, tasks, optimizers and others; installed packages "
        "are found by their entry points lm_research.plugins.",
    )
    model: ModelConfig = _chosen("model")
    objective: ObjectiveConfig = _chosen("objective")
    task: TaskConfig | None = None
    data: DataConfig = DataConfig()
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = _chosen("optimizer")
    schedule: ScheduleConfig = _chosen("schedule")
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    xla: XlaConfig = XlaConfig()
    logging: LoggingConfig = LoggingConfig()
    profile: ProfileConfig = ProfileConfig()

"""The typed schema of a run.

A config file changes the `ml_collections.ConfigDict` that `default_config()` returns. `resolve` converts it to the frozen `Config` of run.py,
or raises a `ConfigError` that names the key, the value and the fix. `describe` lists every key (`--help_config`).

The keys of core sections are in model.py, corpus.py, learning.py and running.py. Those of single objectives, tasks, optimizers and schedules
are next to their code, which registers them (variants.py).
"""

from __future__ import annotations

from lm_research.config.budget import Budget, has_time_budget, parse_budget
from lm_research.config.corpus import CleanConfig, DataConfig, TokenizerConfig
from lm_research.config.draft import default_config
from lm_research.config.keys import Section, key
from lm_research.config.learning import LoraConfig, ObjectiveConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from lm_research.config.model import ModelConfig
from lm_research.config.resolving import by_key, dumps, overlay, replace, resolve, to_dict
from lm_research.config.run import Config
from lm_research.config.running import (
    CheckpointConfig,
    EvalConfig,
    LoggingConfig,
    MeshConfig,
    ProfileConfig,
    XlaConfig,
    profile_range,
    tracker_names,
)
from lm_research.config.schema import check_key, describe, find, walk
from lm_research.config.task import TaskConfig

__all__ = [
    "Budget",
    "CheckpointConfig",
    "CleanConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LoggingConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "ScheduleConfig",
    "Section",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "XlaConfig",
    "parse_budget",
    "by_key",
    "check_key",
    "default_config",
    "describe",
    "dumps",
    "find",
    "key",
    "overlay",
    "profile_range",
    "replace",
    "resolve",
    "has_time_budget",
    "to_dict",
    "tracker_names",
    "walk",
]

"""Pre-training objectives, one file each: how examples are made on the host, and the loss on the device."""

from __future__ import annotations

from lm_research.config import Config
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import FAMILIES, define_model
from lm_research.objectives.base import OBJECTIVES, TextObjective
from lm_research.tokenizers.base import Tokenizer


def define(config: Config, vocab_size: int) -> ModelDefinition:
    """Define the model of a run with the head that its objective needs; raises like `define_model` and `check_objective`."""
    check_objective(config, define_model(config.model, vocab_size).arch)
    return objective_class(config).define(config, vocab_size)


def objective_class(config: Config) -> type[TextObjective]:
    """Look up the class of `config.objective.name`; raises a ConfigError if there is none."""
    return OBJECTIVES.get(config.objective.name)


def build_objective(config: Config, tokenizer: Tokenizer, arch: Architecture) -> TextObjective:
    """Build the objective of a run; raises like `check_objective`."""
    check_objective(config, arch)
    return objective_class(config)(config, tokenizer)


def check_objective(config: Config, arch: Architecture) -> None:
    """Raise a ConfigError if the objective does not exist, or cannot train this architecture with these keys."""
    name, objective = config.objective.name, objective_class(config)
    if arch.kind not in objective.kinds:
        fitting = [other for other, candidate in OBJECTIVES.items() if arch.kind in candidate.kinds]
        families = [
            family
            for family, file in FAMILIES.items()
            if file.architecture(FAMILIES.make(family), 128).kind in objective.kinds
        ]
        raise ConfigError(
            f"config.objective.name={name} trains a model of kind {' or '.join(objective.kinds)}, but model.family="
            f"{config.model.family} is of kind {arch.kind}. Use another objective (--config.objective.name="
            f"{fitting[0]}; fitting: {', '.join(fitting)}) or another family (--config.model.family={families[0]}; fitting: "
            f"{', '.join(families)})."
        )
    objective.check(config, arch)

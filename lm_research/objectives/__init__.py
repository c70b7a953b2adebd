"""What is asked of a model. One file an objective: its examples on the host, its loss on the device."""

from __future__ import annotations

from lm_research.config import Config
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import FAMILIES, define_model
from lm_research.objectives.base import OBJECTIVES, TextObjective
from lm_research.tokenizers.base import Tokenizer


def define(config: Config, vocab_size: int) -> ModelDefinition:
    """The model of a run, with the parts that its objective needs; raises like `define_model` and `check_objective`."""
    check_objective(config, define_model(config.model, vocab_size).arch)
    return objective_class(config).define(config, vocab_size)


def objective_class(config: Config) -> type[TextObjective]:
    """The class of a run's objective; raises a ConfigError if there is none of that name."""
    return OBJECTIVES.get(config.objective.name)


def build_objective(config: Config, tokenizer: Tokenizer, arch: Architecture) -> TextObjective:
    """The objective that a run asks for; raises like `check_objective`."""
    check_objective(config, arch)
    return objective_class(config)(config, tokenizer)


def check_objective(config: Config, arch: Architecture) -> None:
    """Raises a ConfigError if there is no such objective, or if it cannot train this architecture with these keys."""
    name, kind = config.objective.name, objective_class(config)
    if arch.kind not in kind.kinds:
        fitting = [other for other, objective in OBJECTIVES.items() if arch.kind in objective.kinds]
        families = [
            family
            for family, file in FAMILIES.items()
            if file.architecture(FAMILIES.make(family), 128).kind in kind.kinds
        ]
        raise ConfigError(
            f"config.objective.name={name} trains a model of kind {' or '.join(kind.kinds)}, but model.family="
            f"{config.model.family} is of kind {arch.kind}. Use another objective (--config.objective.name="
            f"{fitting[0]}; fitting: {', '.join(fitting)}) or another family (--config.model.family={families[0]}; fitting: "
            f"{', '.join(families)})."
        )
    kind.check(config, arch)

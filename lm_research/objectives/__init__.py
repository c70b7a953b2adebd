"""What is asked of a model. One file an objective: its examples on the host, its loss on the device."""

from __future__ import annotations

from lm_research.config import Config
from lm_research.data.tokenizer import Tokenizer
from lm_research.errors import ConfigError, suggest
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import Objective
from lm_research.objectives.causal_lm import CausalLanguageModel
from lm_research.objectives.masked_lm import MaskedLanguageModel

OBJECTIVES: dict[str, type[Objective]] = {"masked_lm": MaskedLanguageModel, "causal_lm": CausalLanguageModel}


def make_objective(config: Config, tokenizer: Tokenizer, arch: Architecture) -> Objective:
    """The objective a run asks for; raises like `check_objective`."""
    check_objective(config, arch)
    return OBJECTIVES[config.objective.name](config, tokenizer)


def check_objective(config: Config, arch: Architecture) -> None:
    """Raises a ConfigError if there is no such objective, or if it cannot train this architecture."""
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ConfigError(f"config.objective.name is {name!r}. {suggest(name, OBJECTIVES)}")
    needed = OBJECTIVES[name].causal
    if needed != arch.causal:
        fitting = [other for other, kind in OBJECTIVES.items() if kind.causal == arch.causal]
        sight = {True: "only the past", False: "both sides"}
        raise ConfigError(
            f"config.objective.name={name} needs a model that sees {sight[needed]}, but model.family={config.model.family} "
            f"sees {sight[arch.causal]}. Use --config.objective.name={fitting[0]} or another --config.model.family."
        )

"""What is asked of a model. One file an objective: its examples on the host, its loss on the device."""

from __future__ import annotations

from lm_research.config import Config, ModelConfig
from lm_research.errors import ConfigError, suggest
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import FAMILIES, define_model
from lm_research.objectives.base import Objective
from lm_research.objectives.causal_lm import CausalLanguageModel
from lm_research.objectives.denoising import Denoising
from lm_research.objectives.masked_lm import MaskedLanguageModel
from lm_research.objectives.prefix_lm import PrefixLanguageModel
from lm_research.objectives.replaced_token import ReplacedTokenDetection
from lm_research.objectives.seq2seq import SequenceToSequence
from lm_research.objectives.span_corruption import SpanCorruption
from lm_research.tokenizers.base import TextTokenizer

OBJECTIVES: dict[str, type[Objective]] = {
    "masked_lm": MaskedLanguageModel,
    "replaced_token": ReplacedTokenDetection,
    "causal_lm": CausalLanguageModel,
    "prefix_lm": PrefixLanguageModel,
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
    "seq2seq": SequenceToSequence,
}


def define(config: Config, vocab_size: int) -> ModelDefinition:
    """The model of a run, with the parts that its objective needs; raises like `define_model` and `check_objective`."""
    check_objective(config, define_model(config.model, vocab_size).arch)
    return OBJECTIVES[config.objective.name].define(config, vocab_size)


def objective_class(config: Config) -> type[Objective]:
    """The class of a run's objective; raises a ConfigError if there is none of that name."""
    if config.objective.name not in OBJECTIVES:
        raise ConfigError(
            f"config.objective.name is {config.objective.name!r}. {suggest(config.objective.name, OBJECTIVES)}"
        )
    return OBJECTIVES[config.objective.name]


def make_objective(config: Config, tokenizer: TextTokenizer, arch: Architecture) -> Objective:
    """The objective a run asks for; raises like `check_objective`."""
    check_objective(config, arch)
    return OBJECTIVES[config.objective.name](config, tokenizer)


def check_objective(config: Config, arch: Architecture) -> None:
    """Raises a ConfigError if there is no such objective, or if it cannot train this architecture with these keys."""
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ConfigError(f"config.objective.name is {name!r}. {suggest(name, OBJECTIVES)}")
    kinds = OBJECTIVES[name].kinds
    if arch.kind not in kinds:
        fitting = [other for other, objective in OBJECTIVES.items() if arch.kind in objective.kinds]
        families = [family for family, file in FAMILIES.items() if file.architecture(ModelConfig(), 128).kind in kinds]
        raise ConfigError(
            f"config.objective.name={name} trains a model of kind {' or '.join(kinds)}, but model.family="
            f"{config.model.family} is of kind {arch.kind}. Use another objective (--config.objective.name="
            f"{fitting[0]}; fitting: {', '.join(fitting)}) or another family (--config.model.family={families[0]}; fitting: "
            f"{', '.join(families)})."
        )
    OBJECTIVES[name].check(config, arch)

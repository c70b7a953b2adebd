"""One short file a family: from a run's model section to an Architecture, and the model built of it.

This package and interop/ are the only places that know families by name.
"""

from __future__ import annotations

from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, suggest
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import bert, gpt2

FAMILIES = {"bert": bert, "gpt2": gpt2}


def define_model(config: ModelConfig, vocab_size: int) -> ModelDefinition:
    """The model a run asks for.

    Args:
      config: the run's model section.
      vocab_size: rows of the token table.

    Raises:
      ConfigError: no such family.
    """
    if config.family not in FAMILIES:
        raise ConfigError(f"config.model.family is {config.family!r}. {suggest(config.family, FAMILIES)}")
    return FAMILIES[config.family].define_model(config, vocab_size)

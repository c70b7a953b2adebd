"""One short file a family: from a run's model section, or a config.json, to an Architecture; sizes; names of weights.

This package and interop/ are the only places that know families by name.
"""

from __future__ import annotations

from types import ModuleType

from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, suggest
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import (
    albert,
    bart,
    bert,
    distilbert,
    electra,
    gpt2,
    gpt3,
    llama,
    mbart,
    mt5,
    roberta,
    t5,
    transformer,
    xlm_roberta,
)
from lm_research.models.heads import Head

FAMILIES: dict[str, ModuleType] = {
    "albert": albert,
    "bart": bart,
    "bert": bert,
    "distilbert": distilbert,
    "electra": electra,
    "gpt2": gpt2,
    "gpt3": gpt3,
    "llama": llama,
    "mbart": mbart,
    "mt5": mt5,
    "roberta": roberta,
    "t5": t5,
    "transformer": transformer,
    "xlm_roberta": xlm_roberta,
}
# What each kind of architecture is trained to do where nobody says otherwise.
DEFAULT_HEADS = {"encoder": "masked_lm", "decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}


VOCAB_MULTIPLE = 128  # what matrix units like; it also lets every usual mesh divide the table


def table_rows(config: ModelConfig, tokens: int) -> int:
    """Rows of a run's token table: as its model section asks, or the tokenizer's tokens rounded up."""
    return config.vocab_size or -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def define_model(config: ModelConfig, vocab_size: int, head: str = "") -> ModelDefinition:
    """The model a run asks for.

    Args:
      config: the run's model section.
      vocab_size: rows of the token table.
      head: a name of heads.HEADS; empty is the one its kind is pre-trained with.

    Raises:
      ConfigError: no such family, or a variant it does not have.
    """
    if config.family not in FAMILIES:
        raise ConfigError(f"config.model.family is {config.family!r}. {suggest(config.family, FAMILIES)}")
    family = FAMILIES[config.family]
    arch = family.architecture(config, vocab_size)
    return define(arch, Head(head or getattr(family, "HEAD", DEFAULT_HEADS[arch.kind])))


def model_types() -> dict[str, str]:
    """`model_type` of config.json -> family."""
    return {kind: name for name, family in FAMILIES.items() for kind in family.MODEL_TYPES}

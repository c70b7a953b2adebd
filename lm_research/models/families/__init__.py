"""One short file a family: from a run's model section, or a config.json, to an Architecture; sizes; names of weights.

This package and interop/ are the only places that know families by name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import short
from lm_research.common.rounding import round_up
from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, PretrainedError, suggest
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import composite
from lm_research.models.families.base import FAMILIES as FAMILIES
from lm_research.models.families.base import Family
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import flaw

# What each kind of architecture is trained to do where nobody says otherwise.
DEFAULT_HEADS = {"encoder": "masked_lm", "decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}
VOCAB_MULTIPLE = 128  # what matrix units like; it also lets every usual mesh divide the table


def table_rows(config: ModelConfig, tokens: int) -> int:
    """Rows of a run's token table: as its model section asks, or the tokenizer's tokens rounded up."""
    return config.vocab_size or round_up(tokens, VOCAB_MULTIPLE)


def define_model(config: ModelConfig, vocab_size: int, head: str = "") -> ModelDefinition:
    """The model a run asks for.

    Args:
      config: the run's model section.
      vocab_size: rows of the token table.
      head: a name of head_kinds.HEADS; empty is the one its kind is pre-trained with.

    Raises:
      ConfigError: no such family, a variant it does not have, or numbers that make no model.
    """
    family, own = FAMILIES[config.family], FAMILIES.settings(config.family)
    if not isinstance(config, own):  # keys that all families have, which leave the others at their defaults
        config = own(**vars(config))
    arch = family.architecture(config, vocab_size)
    if wrong := flaw(arch):
        raise ConfigError(f"config.model with family={config.family}: {wrong}.")
    return define(arch, HeadSpec(head or family.head or DEFAULT_HEADS[arch.kind]))


def model_types() -> dict[str, str]:
    """`model_type` of config.json -> family; a model that is made of two has the families of both."""
    return {kind: name for name, family in FAMILIES.items() for kind in family.model_types}


def name_of(hf: Mapping[str, Any]) -> str:
    """The name of the family whose config.json this is.

    Raises:
      PretrainedError: there is none.
    """
    types, kind = model_types(), hf.get("model_type")
    if kind == composite.MODEL_TYPE:
        return composite.name_of(hf, types)
    if not isinstance(kind, str) or kind not in types:
        known = ", ".join(sorted([*types, composite.MODEL_TYPE]))
        raise PretrainedError(f"model_type is {short(kind)}, which is not supported. Supported: {known}.")
    return types[kind]


def family_of(name: str) -> Family:
    """The family of a name, that of a pair included; raises a ValueError if there is none."""
    try:
        return FAMILIES[name]
    except ConfigError as error:
        raise ValueError(f"its family is {name!r}. {suggest(name, FAMILIES)}") from error


@functools.cache
def pair_of(encoder: str, decoder: str) -> composite.Composite | None:
    """The family of models of two; None where such do not go together."""
    if encoder not in FAMILIES or decoder not in FAMILIES:
        return None
    fit = composite.fits("encoder", encoder) and composite.fits("decoder", decoder)
    return composite.Composite(FAMILIES[encoder], FAMILIES[decoder]) if fit else None

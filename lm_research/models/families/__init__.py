"""Model families, one file each: architectures of runs and of config.json files, published sizes, names of weights.

Only this package and interop/ may depend on the name of a family.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from lm_research.common.documents import short
from lm_research.common.rounding import round_up
from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, PretrainedError, suggest
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import composite
from lm_research.models.families.base import FAMILIES as FAMILIES
from lm_research.models.families.base import Family
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import invalid_reason

# The head that each kind of architecture is pre-trained with by default.
DEFAULT_HEADS = {"encoder": "masked_lm", "decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}
VOCAB_MULTIPLE = 128  # fills matrix units, and is divisible by every common mesh size


class FamilyInfo(NamedTuple):
    """Description of a family.

    Attributes:
      name: value of config.model.family.
      description: what its models are.
      stack: "encoder", "decoder" or "encoder-decoder".
      model_types: values of `model_type` in config.json that are read.
      classes: class names in config.json that are read -> head, a key of head_kinds.HEADS.
      sizes: names of its published sizes.
      reference: the implementation that tests compare it with; empty if its models are stored as another family's.
    """

    name: str
    description: str
    stack: str
    model_types: tuple[str, ...]
    classes: Mapping[str, str]
    sizes: tuple[str, ...]
    reference: str

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that its files can have."""
        return tuple(dict.fromkeys(self.classes.values()))


def families() -> tuple[FamilyInfo, ...]:
    """Describe all model families, those of imported plug-ins included."""
    return tuple(map(_info, sorted(FAMILIES)))


def _info(name: str) -> FamilyInfo:
    family = FAMILIES[name]
    first = (inspect.getdoc(type(family)) or "").partition("\n\n")[0].replace("\n", " ")
    return FamilyInfo(
        name,
        first.rstrip("."),
        family.architecture(FAMILIES.make(name), VOCAB_MULTIPLE).kind,
        tuple(family.model_types),
        {prefix + rest: head for prefix in family.model_types.values() for rest, head in family.classes.items()},
        tuple(family.sizes),
        family.reference if family.model_types else "",
    )


def table_rows(config: ModelConfig, tokens: int) -> int:
    """Rows of a run's token table: model.vocab_size, or the tokenizer's number of tokens rounded up."""
    return config.vocab_size or round_up(tokens, VOCAB_MULTIPLE)


def define_model(config: ModelConfig, vocab_size: int, head: str = "") -> ModelDefinition:
    """Define the model of a run.

    Args:
      config: the run's model section.
      vocab_size: rows of the token table.
      head: a name of head_kinds.HEADS; empty is the one the family is pre-trained with.

    Raises:
      ConfigError: the family or its variant does not exist, or the settings do not form a valid model.
    """
    family, settings = FAMILIES[config.family], FAMILIES.settings(config.family)
    if not isinstance(config, settings):  # only the keys of all families; the family's own have their defaults
        config = settings(**vars(config))
    arch = family.architecture(config, vocab_size)
    if reason := invalid_reason(arch):
        raise ConfigError(f"config.model with family={config.family}: {reason}.")
    return define(arch, HeadSpec(head or family.head or DEFAULT_HEADS[arch.kind]))


# Values of model_type that are not read, with the reason and what to use instead.
_OTHER_LAYERS = {
    "prophetnet": "its decoder predicts several tokens at once, from a stream of states for each with attention of its own (n-gram attention), "
    "which no layer here computes. Use an encoder-decoder that predicts one token at a time, such as bart, pegasus or t5",
}


def model_types() -> dict[str, str]:
    """Map `model_type` of config.json to the family's name; encoder-decoder pairs are not included (see composite.py)."""
    return {kind: name for name, family in FAMILIES.items() for kind in family.model_types}


def name_of(hf: Mapping[str, Any]) -> str:
    """The name of the family of a config.json.

    Raises:
      PretrainedError: its model_type is not supported.
    """
    types, kind = model_types(), hf.get("model_type")
    if kind == composite.MODEL_TYPE:
        return composite.name_of(hf, types)
    if isinstance(kind, str) and kind in _OTHER_LAYERS:
        raise PretrainedError(f"model_type is {kind!r}, which is not supported: {_OTHER_LAYERS[kind]}.")
    if not isinstance(kind, str) or kind not in types:
        supported = [*types, composite.MODEL_TYPE]
        near = difflib.get_close_matches(str(kind), supported, n=1)
        raise PretrainedError(
            f"model_type is {short(kind)}, which is not supported. {f'Did you mean {near[0]!r}? ' if near else ''}docs/families.md lists the "
            f"{len(supported)} that are (lm_research.families()), and docs/porting.md describes how to add a family."
        )
    return types[kind]


def family_of(name: str) -> Family:
    """The family with this name, pairs such as bert2gpt2 included; raises a ValueError if it does not exist."""
    try:
        return FAMILIES[name]
    except ConfigError as error:
        raise ValueError(f"its family is {name!r}. {suggest(name, FAMILIES)}") from error


def stored_as(name: str, arch: Architecture, config: Mapping[str, Any]) -> Family:
    """The family in whose format a model of the family `name` is stored.

    That is the family of its config.json's model_type, which may have been part of another family when the model was made.
    """
    types, kind = model_types(), config.get("model_type")
    family = FAMILIES[types[kind]] if kind in types else family_of(name).stored_as(arch)
    return family.of(config)


@functools.cache
def pair_of(encoder: str, decoder: str) -> composite.Composite | None:
    """The family that combines an encoder and a decoder; None if they cannot be combined."""
    if encoder not in FAMILIES or decoder not in FAMILIES:
        return None
    supported = composite.can_be("encoder", encoder) and composite.can_be("decoder", decoder)
    return composite.Composite(FAMILIES[encoder], FAMILIES[decoder]) if supported else None

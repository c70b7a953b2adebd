"""mBART (Liu et al. 2020, arXiv:2001.08210): BART over 25 languages, with norms before the branches."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.families import bart
from lm_research.models.families.bart import (  # noqa: F401
    AS_DECODER,
    CLASSES,
    COPIES,
    KEPT,
    KEYS,
    LOSSES,
    prefix,
    weights,
)
from lm_research.models.families.common import encoder_decoder

# Liu et al. 2020, section 2.2: vocabulary of 250,027 with the language codes.
SIZES = {"large": bart.SIZES["large"]}
TRAITS = bart.TRAITS | {"norm": "pre"}
MODEL_TYPES = {"mbart": "MBart"}
SHIFTS_AROUND = True  # the decoder starts with the last source token, the language's code


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    traits = TRAITS | dict(activation="gelu", norm_epsilon=1e-5, pad_id=1, eos_id=2)
    return encoder_decoder(config, vocab_size, embedding_scale=config.hidden_size**0.5, **traits)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    return bart.read(hf, TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    hf = bart.to_hf(arch)
    return {
        name: value for name, value in hf.items() if name != "decoder_start_token_id"
    }  # it is the last source token

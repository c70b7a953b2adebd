"""Models with an encoder of one family and a decoder of another (Rothe et al. 2019, arXiv:1907.12461), for example bert2gpt2.

The decoder attends to the encoder's states; if their widths differ, a dense layer maps the states to the decoder's. Such a family is named
ENCODER2DECODER. In transformers these are EncoderDecoderModels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import short
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import ParamMapping, dense

MODEL_TYPE = "encoder-decoder"
DECODER_KEYS = {"is_decoder": True, "add_cross_attention": True}
# Families that cannot be the decoder: BigBird's attention to itself reads the encoder's states instead in transformers, and GPT-BERT has
# no attention to an encoder.
NO_DECODERS = ("big_bird", "gpt_bert")
# Fields in which the decoder differs from one without an encoder.
TRAITS = dict(shared_tokens=False, head_bias=False, prompt_positions="slots")


def can_be(part: str, name: str) -> bool:
    """Whether a family can be the "encoder" or the "decoder" of a pair."""
    family = FAMILIES[name]
    if part == "encoder":
        return "masked_lm" in family.classes.values()
    return family.decoder_config is not None and name not in NO_DECODERS


def name_of(hf: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """The family name of a config.json, given the families of model types.

    Raises:
      PretrainedError: the model_type of one part is missing, or not supported for this part.
    """
    names = []
    for part in ("encoder", "decoder"):
        inner = hf.get(part)
        kind = inner.get("model_type") if isinstance(inner, Mapping) else None
        if not isinstance(kind, str) or kind not in types or not can_be(part, types[kind]):
            supported = ", ".join(sorted(kind for kind, family in types.items() if can_be(part, family)))
            raise PretrainedError(
                f"model_type of the {part} is {short(kind)}, which is not supported there. Supported: {supported}."
            )
        names.append(types[kind])
    return "2".join(names)


class Composite(Family):
    """The family of pairs of an encoder and a decoder."""

    model_types = {MODEL_TYPE: "EncoderDecoder"}
    classes = {"Model": "seq2seq_lm"}
    hides_padded_targets = True

    def __init__(self, encoder: Family, decoder: Family) -> None:
        assert decoder.decoder_config is not None
        self.encoder, self.decoder, self.decoder_keys = encoder, decoder, decoder.decoder_config
        tables = {stack: name.removeprefix("@") for stack, name in decoder.sinusoids.items() if stack == "decoder"}
        self.sinusoids = {stack: f"decoder.{decoder.base_prefix}{name}" for stack, name in tables.items()}
        self.redundant = (*_patterns("encoder", encoder.redundant), *_patterns("decoder", decoder.redundant))
        unread = (*_patterns("encoder", encoder.unread), *_patterns("decoder", decoder.unread))
        self.unread = (r"^encoder\.pooler\.", *unread)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        encoder = _part("encoder", self.encoder, hf["encoder"], names)
        decoder = _part("decoder", self.decoder, {**hf["decoder"], **self.decoder_keys}, names)
        if encoder.causal:
            raise PretrainedError(
                "config.json: is_decoder is true in `encoder`, but an encoder must be bidirectional. Set it to false."
            )
        widths_differ = encoder.hidden_size != decoder.hidden_size
        if widths_differ and hf["decoder"].get("cross_attention_hidden_size") is not None:
            raise PretrainedError(
                f"config.json: cross_attention_hidden_size is set in `decoder`, but the widths {encoder.hidden_size} and "
                f"{decoder.hidden_size} differ, which requires a projection instead. Remove cross_attention_hidden_size."
            )
        return decoder.replace(encoder=encoder, memory_projection=widths_differ, **TRAITS)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        encoder, decoder = (
            family.to_hf(stack) | {"model_type": next(iter(family.model_types))}
            for family, stack in ((self.encoder, arch.source), (self.decoder, arch.replace(encoder=None)))
        )
        hf = {"model_type": MODEL_TYPE, "is_encoder_decoder": True}
        hf |= {"encoder": encoder, "decoder": decoder | DECODER_KEYS}
        return hf if arch.pad_id < 0 else hf | {"pad_token_id": arch.pad_id}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        decoder = arch.replace(encoder=None)
        prefix = self.decoder.prefix(decoder, "causal_lm", "")
        of_encoder = [one for one in self.encoder.weights(arch.source, "none") if one.path.startswith("encoder/")]
        of_decoder = [one for one in self.decoder.weights(decoder, "causal_lm") if not one.path.startswith("encoder/")]
        return (
            *_prefixed("encoder.", "encoder.", of_encoder),
            *_prefixed("decoder.", f"decoder.{prefix}", of_decoder),
            *dense("memory_projection", "enc_to_dec_proj"),
        )


def _part(part: str, family: Family, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    try:
        return family.from_hf(hf, set(_below(part, names)))
    except PretrainedError as error:
        raise PretrainedError(str(error).replace("config.json: ", f"config.json: {part}: ", 1)) from error


def _patterns(part: str, patterns: Iterable[str]) -> Iterator[str]:
    """Patterns of the names of a pair's tensors, from those of one part's."""
    return (re.sub(r"^\^", rf"^{part}\\.", one) for one in patterns)


def _prefixed(outer: str, inner: str, weights: Iterable[ParamMapping]) -> Iterator[ParamMapping]:
    """Weights with the prefixes of a pair's names: `inner` instead of "@", `outer` before other names."""

    def name(one: str) -> str:
        return inner + one[1:] if one.startswith("@") else outer + one

    for weight in weights:
        changes: dict[str, Any] = {
            field: tuple(map(name, getattr(weight, field))) for field in ("names", "copies", "kept")
        }
        yield dataclasses.replace(weight, **changes)


def _below(part: str, names: Iterable[str]) -> Iterator[str]:
    return (name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}."))

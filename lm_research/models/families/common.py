"""Functions that families share: conversion of configs to architectures, and names of weights in checkpoints.

Names of weights are those that Hugging Face's `transformers` writes. "@" at the start of a name is replaced by the model's prefix ("bert."
in BertForMaskedLM, nothing in BertModel), and "{}" by the index of a block, or of a group and of a block in the group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm_research.common.documents import Count, Size, check, check_fields, short
from lm_research.config import ModelConfig, key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.limits import RANGES
from lm_research.models.mup import parametrize
from lm_research.parallel.precision import auto_dtype

# Names of activations in config.json -> ours; the format has several names for the tanh approximation.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# Keys of ModelConfig that are fields of an Architecture.
CONFIG_FIELDS = (
    "hidden_size num_layers num_heads intermediate_size max_length dropout_rate attention_dropout_rate init_std "
    "dtype scan_layers remat remat_names attention_backend"
).split()
FIX = "Download config.json again, or fix it."
# Keys of config.json, with their only supported values, of families whose multiple choice reads the last position without further layers.
END_SUMMARY: dict[str, Any] = {"summary_type": "last", "summary_use_proj": False, "summary_activation": None}


@dataclasses.dataclass(frozen=True)
class ParamMapping:
    """The mapping of a parameter to tensors of a checkpoint.

    Attributes:
      path: our path, "encoder/layers/attention/query/kernel"; below "layers" the first axis counts blocks.
      names: names in the checkpoint; the first is written, any is read.
      transpose: whether the tensor is stored [out, in], as in torch's Linear, instead of [in, out].
      inputs: number of our axes that are contracted (2 for the attention's output: heads and their width).
      part, parts: index among the parts of a stored tensor that holds several parameters along its last axis after transposition, and
        the parts' relative sizes, (1, 1, 1) for three of one size.
      groups: number of equal groups that the last axis is divided into, each of which has the parts (BLOOM: a group per head).
      leading: whether the tensor has an additional leading axis of size 1.
      copies: further names that the parameter is written to.
      kept: names of unused tensors that files may have in addition; if they do, these are written back.
      preferred: names that are read before `names` if the files have them, and never written.
      group: number of blocks in a group, or of experts in a layer, for names with both indices.
      by_expert: whether the axis after that of layers counts experts, each of which has tensors of its own.
      layers: index of each stacked layer; empty if they count from 0.
    """

    path: str
    names: tuple[str, ...]
    transpose: bool = False
    inputs: int = 1
    part: int = 0
    parts: tuple[int, ...] = (1,)
    groups: int = 1
    leading: bool = False
    copies: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()
    group: int = 1
    by_expert: bool = False
    layers: tuple[int, ...] = ()

    def columns(self, size: int) -> np.ndarray:
        """Indices along the last axis of the stored tensor of this parameter's `size` elements.

        Example: queries of 2 heads of width 2 in groups (query, key, value) are columns 0, 1, 6 and 7 of 12.
        """
        unit = size // (self.parts[self.part] * self.groups)
        starts = np.arange(self.groups) * sum(self.parts) + sum(self.parts[: self.part])
        return (starts[:, None] * unit + np.arange(size // self.groups)).reshape(-1)

    def stored_size(self, size: int) -> int:
        """Length of the last axis of the stored tensor."""
        return size * sum(self.parts) // self.parts[self.part]

    def of_layer(self, name: str, layer: int) -> str:
        """One of the names, with the index of the block at position `layer` of the stack."""
        layer, inner = divmod(layer, self.group)
        layer = self.layers[layer] if self.layers else layer
        if name.count("{}") == 2:
            return name.format(layer, inner)
        return name.replace("{}", str(layer))


def dense(path: str, name: str, **options: Any) -> tuple[ParamMapping, ParamMapping]:
    """Map a dense layer: kernel and bias. transpose=False is for layers that are stored [in, out]."""
    bias = {key: options[key] for key in ("part", "parts", "groups") if key in options}
    return (
        ParamMapping(f"{path}/kernel", (f"{name}.weight",), **{"transpose": True, **options}),
        ParamMapping(f"{path}/bias", (f"{name}.bias",), **bias),
    )


def norm(path: str, name: str) -> tuple[ParamMapping, ParamMapping]:
    """Map a norm: scale and bias."""
    return ParamMapping(f"{path}/scale", (f"{name}.weight",)), ParamMapping(f"{path}/bias", (f"{name}.bias",))


def tensor(path: str, *names: str, **options: Any) -> tuple[ParamMapping, ...]:
    """Map a parameter that is stored in our layout, under the first of these names."""
    return (ParamMapping(path, names, **options),)


def attention(path: str, name: str, query: str, key: str, value: str, output: str) -> tuple[ParamMapping, ...]:
    """Map the four projections of an attention layer, by their names below `name`."""
    return (
        *dense(f"{path}/query", f"{name}.{query}"),
        *dense(f"{path}/key", f"{name}.{key}"),
        *dense(f"{path}/value", f"{name}.{value}"),
        *dense(f"{path}/output", f"{name}.{output}", inputs=2),
    )


def from_config(config: ModelConfig, vocab_size: int, **traits: Any) -> Architecture:
    """The architecture of a run: the fields of its model section, with the family's traits."""
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    fields |= {"num_kv_heads": config.num_kv_heads or 0, "head_size": config.head_size or 0}
    fields["dtype"] = auto_dtype(config.scan_layers) if config.dtype == "auto" else config.dtype
    tied = {} if config.tie_word_embeddings is None else {"tied": config.tie_word_embeddings}
    arch = from_flat(**{"vocab_size": vocab_size, **fields, **traits, **tied})
    arch = arch.with_layers(residual=config.norm_position) if config.norm_position else arch
    return parametrize(arch, config) if config.mup_base_width else arch


@dataclasses.dataclass(frozen=True)
class FactorizedConfig(ModelConfig):
    """Model section of families whose embeddings may be narrower than the residual stream."""

    embedding_size: int | None = key(None, "Width E of the embeddings; None uses hidden_size.", low=1, high=2**20)


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """Model section of encoder-decoders."""

    num_encoder_layers: int | None = key(None, "Number of encoder blocks; None uses num_layers.", low=1, high=4096)


def encoder_decoder(config: EncoderDecoderConfig, vocab_size: int, **traits: Any) -> Architecture:
    """`from_config` for a decoder with an encoder of the same shape, except for `num_encoder_layers`."""
    decoder_only = {"head_bias", "pooling", "eos_id", "logit_scale", "tied", "norm_before_positions"}
    encoder_traits = {name: value for name, value in traits.items() if name not in decoder_only}
    encoder = from_config(config, vocab_size, **encoder_traits)
    if config.num_encoder_layers:
        encoder = encoder.replace(num_layers=config.num_encoder_layers)
    return from_config(config, vocab_size, causal=True, encoder=encoder, **traits)


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """A key of config.json: the field of Architecture that it sets, its name, its default, and other names that files may have."""

    field: str
    name: str
    default: Any
    aliases: tuple[str, ...] = ()


def with_defaults(keys: Iterable[ConfigField], defaults: Mapping[str, Any]) -> tuple[ConfigField, ...]:
    """The keys with other defaults, given by their names in config.json."""
    return tuple(dataclasses.replace(key, default=defaults.get(key.name, key.default)) for key in keys)


def without(entries: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A mapping without these entries."""
    return {name: entry for name, entry in entries.items() if name not in names}


def read_keys(hf: Mapping[str, Any], keys: Iterable[ConfigField]) -> dict[str, Any]:
    """Fields of an Architecture from a config.json; a value of null is the default.

    Raises:
      PretrainedError: a value of the wrong type or out of its field's range (models/limits.py), or an unknown activation.
    """
    fields = {}
    for field in keys:
        name = next((name for name in (field.name, *field.aliases) if hf.get(name) is not None), field.name)
        value = given(hf, name, field.default)
        if field.field == "eos_id" and isinstance(value, list) and value:  # `generate` ends texts at any of them
            value = value[0]
        if field.field.endswith("activation"):
            value = read_activation(name, value)
        elif value is not field.default:
            kind = RANGES.get(field.field, type(field.default))
            kind = Size if kind is Count and field.default > 0 else kind  # an explicit 0 is not a valid size
            value = check(value, kind, f"config.json: {name}", error=PretrainedError, fix=FIX)
        fields[field.field] = value
    return fields


def read_activation(name: str, value: Any) -> str:
    """Our name of an activation in config.json; raises a PretrainedError if it is not supported."""
    if isinstance(value, str) and value in ACTIVATION_NAMES:
        return ACTIVATION_NAMES[value]
    raise PretrainedError(
        f"config.json: {name} is {short(value)}, an activation that is not supported. Supported: {', '.join(ACTIVATION_NAMES)}."
    )


def check_others(hf: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "config.json") -> None:
    """Raise a PretrainedError unless each key without a ConfigField is null or of its type."""
    check_fields(hf, kinds, where, error=PretrainedError, fix=FIX)


def given(hf: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a key, or `default` if it is missing or null."""
    value = hf.get(name)
    return default if value is None else value


def write_keys(arch: Architecture, keys: Iterable[ConfigField]) -> dict[str, Any]:
    """Keys of a config.json from an architecture, the inverse of `read_keys`."""
    names = {ours: name for name, ours in reversed(ACTIVATION_NAMES.items())}
    fields = vars(arch.layers[-1]) | vars(arch)
    return {
        key.name: names[fields[key.field]] if key.field.endswith("activation") else fields[key.field] for key in keys
    }


def check_supported(hf: Mapping[str, Any], supported: Mapping[str, Any], where: str = "config.json") -> None:
    """Raise a PretrainedError if a key has a value other than its supported one (or ones, in a tuple)."""
    for name, allowed in supported.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if name in hf and hf[name] is not None and hf[name] not in allowed:
            raise PretrainedError(
                f"{where}: {name} is {short(hf[name])}, which is not supported for this family "
                f"(supported: {', '.join(map(repr, allowed))})."
            )

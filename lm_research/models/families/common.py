"""What the family files share: from two kinds of config to an Architecture, and the names of weights in checkpoints.

A family's names follow the format that Hugging Face's `transformers` writes. "@" at the start of a name stands for the
model's prefix ("bert." in BertForMaskedLM, nothing in BertModel), "{}" for the number of a block, or of a group and of a block in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lm_research.common.documents import Count, Size, check, check_fields, short
from lm_research.config import ModelConfig, key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.limits import RANGES
from lm_research.models.mup import parametrize

# Names of activations in Hugging Face's files -> ours. The last three are other spellings of the tanh approximation.
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
FIX = "Download config.json again, or fix it."


@dataclasses.dataclass(frozen=True)
class ParamMapping:
    """One of our arrays and where it lies in a checkpoint.

    Attributes:
      path: ours, "encoder/layers/attention/query/kernel"; below "layers" the first axis counts blocks.
      names: theirs; the first is written, any is read.
      transpose: stored [out, in], as torch's Linear, where we have [in, out].
      inputs: how many of our axes are contracted ones (2 for the attention's output: heads and their width).
      part, parts: it is the part-th of so many equal parts along the last (transposed) axis of the stored one.
      leading: stored with an additional axis of 1 in front.
      copies: names under which it is written once more.
      kept: names of tensors that nothing reads and that files may have beside it; what was read there is written back.
      preferred: names that are read before `names` where the files have them, and never written.
      group: blocks in a group, where names number both.
      layers: the number of each stacked layer; empty: they count from 0.
    """

    path: str
    names: tuple[str, ...]
    transpose: bool = False
    inputs: int = 1
    part: int = 0
    parts: int = 1
    leading: bool = False
    copies: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()
    group: int = 1
    layers: tuple[int, ...] = ()

    def of_layer(self, name: str, layer: int) -> str:
        """One of the names with the number of the block in it that is stacked in this place."""
        layer = self.layers[layer] if self.layers else layer
        if name.count("{}") == 2:
            return name.format(*divmod(layer, self.group))
        return name.replace("{}", str(layer))


def dense(path: str, name: str, **options: Any) -> tuple[ParamMapping, ParamMapping]:
    """A dense layer: kernel and bias. With transpose=False for layers that store [in, out]."""
    bias = {key: options[key] for key in ("part", "parts") if key in options}
    return (
        ParamMapping(f"{path}/kernel", (f"{name}.weight",), **{"transpose": True, **options}),
        ParamMapping(f"{path}/bias", (f"{name}.bias",), **bias),
    )


def norm(path: str, name: str) -> tuple[ParamMapping, ParamMapping]:
    """A norm: scale and bias."""
    return ParamMapping(f"{path}/scale", (f"{name}.weight",)), ParamMapping(f"{path}/bias", (f"{name}.bias",))


def tensor(path: str, *names: str, **options: Any) -> tuple[ParamMapping, ...]:
    """An array that is stored as we have it, under the first of these names."""
    return (ParamMapping(path, names, **options),)


def attention(path: str, name: str, query: str, key: str, value: str, output: str) -> tuple[ParamMapping, ...]:
    """The four projections of an attention layer, by their names below `name`."""
    return (
        *dense(f"{path}/query", f"{name}.{query}"),
        *dense(f"{path}/key", f"{name}.{key}"),
        *dense(f"{path}/value", f"{name}.{value}"),
        *dense(f"{path}/output", f"{name}.{output}", inputs=2),
    )


def from_config(config: ModelConfig, vocab_size: int, **traits: Any) -> Architecture:
    """The architecture of a run: its model section, and what is peculiar to the family."""
    given = {
        name: getattr(config, name)
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_length",
            "dropout_rate",
            "attention_dropout_rate",
            "init_std",
            "dtype",
            "scan_layers",
            "remat",
            "attention_backend",
        )
    }
    given |= {"num_kv_heads": config.num_kv_heads or 0, "head_size": config.head_size or 0}
    arch = from_flat(**{"vocab_size": vocab_size, **given, **traits})
    arch = arch.with_layers(residual=config.norm_position) if config.norm_position else arch
    return parametrize(arch, config) if config.mup_base_width else arch


@dataclasses.dataclass(frozen=True)
class FactorizedConfig(ModelConfig):
    """Of families whose embeddings are mapped to the residual stream."""

    embedding_size: int | None = key(None, "Width E of the embeddings; None uses hidden_size.", low=1, high=2**20)


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    num_encoder_layers: int | None = key(None, "Number of encoder blocks; None uses num_layers.", low=1, high=4096)


def encoder_decoder(config: EncoderDecoderConfig, vocab_size: int, **traits: Any) -> Architecture:
    """The same for a decoder with an encoder of the same shape, except for `num_encoder_layers`."""
    decoder_only = {"head_bias", "pooling", "eos_id", "logit_scale", "tied"}
    inner = {name: value for name, value in traits.items() if name not in decoder_only}
    encoder = from_config(config, vocab_size, **inner)
    if config.num_encoder_layers:
        encoder = encoder.replace(num_layers=config.num_encoder_layers)
    return from_config(config, vocab_size, causal=True, encoder=encoder, **traits)


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """A key of config.json, the field of Architecture it sets, and its value where a file leaves it out."""

    field: str
    name: str
    default: Any


def with_defaults(keys: Iterable[ConfigField], defaults: Mapping[str, Any]) -> tuple[ConfigField, ...]:
    """The keys with other values where a file leaves them out, by their names in config.json."""
    return tuple(dataclasses.replace(key, default=defaults.get(key.name, key.default)) for key in keys)


def without(classes: Mapping[str, str], *names: str) -> dict[str, str]:
    """A family's classes but for these."""
    return {name: head for name, head in classes.items() if name not in names}


def read_keys(hf: Mapping[str, Any], keys: Iterable[ConfigField]) -> dict[str, Any]:
    """Fields of an Architecture from a config.json. A value of null is the one where a file leaves the key out.

    Raises:
      PretrainedError: a value of the wrong type or out of its field's range (models/limits.py), or an unknown activation.
    """
    fields = {}
    for field in keys:
        value = hf.get(field.name)
        value = field.default if value is None else value
        if field.field.endswith("activation"):
            value = read_activation(field.name, value)
        elif value is not field.default:
            kind = RANGES.get(field.field, type(field.default))
            kind = Size if kind is Count and field.default > 0 else kind  # 0 is no size where a file may leave it out
            value = check(value, kind, f"config.json: {field.name}", error=PretrainedError, fix=FIX)
        fields[field.field] = value
    return fields


def read_activation(name: str, value: Any) -> str:
    """Our name of an activation of config.json; raises a PretrainedError if there is none."""
    if isinstance(value, str) and value in ACTIVATION_NAMES:
        return ACTIVATION_NAMES[value]
    raise PretrainedError(
        f"config.json: {name} is {short(value)}, an activation that is not supported. Supported: {', '.join(ACTIVATION_NAMES)}."
    )


def check_others(hf: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "config.json") -> None:
    """Raises a PretrainedError unless keys that no ConfigField has are null or of their types."""
    check_fields(hf, kinds, where, error=PretrainedError, fix=FIX)


def given(hf: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a key, or `default` where it is left out or null."""
    value = hf.get(name)
    return default if value is None else value


def write_keys(arch: Architecture, keys: Iterable[ConfigField]) -> dict[str, Any]:
    """The inverse of `read_keys`."""
    theirs = {ours: name for name, ours in reversed(ACTIVATION_NAMES.items())}
    fields = vars(arch.layers[-1]) | vars(arch)
    values = {key.name: fields[key.field] for key in keys}
    return {
        key.name: theirs[values[key.name]] if key.field.endswith("activation") else values[key.name] for key in keys
    }


def check_supported(hf: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Raises a PretrainedError if a key has another value than the only one (or ones, in a tuple) supported."""
    for name, allowed in supported.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if name in hf and hf[name] is not None and hf[name] not in allowed:
            raise PretrainedError(
                f"config.json: {name} is {short(hf[name])}, which this family's code does not have "
                f"(supported: {', '.join(map(repr, allowed))})."
            )

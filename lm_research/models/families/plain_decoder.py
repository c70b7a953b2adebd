"""The base of decoders whose heads are together as wide as the residual stream, and names of weights that several of them share."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping, dense, norm, write_keys


class PlainDecoder(Family):
    """The base of decoders whose heads are together as wide as the residual stream.

    Attributes:
      _grouped: whether the format allows fewer key and value heads than query heads.
      _inner_ratio: the only possible width of the feed-forward layer, in multiples of hidden_size; 0 for any.
    """

    traits = dict(causal=True, norm="pre", pooling="last", pooler_activation="")
    classes = {
        "ForCausalLM": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "Model": "none",
    }
    frozen_padding = False
    base_prefix = "transformer."
    redundant = (r"\.attn\.(attention\.)?(bias|masked_bias)$",)

    _grouped = False
    _inner_ratio = 0

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        return from_flat(**{**self.traits, **self.read(hf)})

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        sizes = {"num_heads x head_size": (arch.num_heads * arch.head_width, arch.hidden_size)}
        if not self._grouped:
            sizes["num_kv_heads"] = arch.kv_heads, arch.num_heads
        if self._inner_ratio:
            sizes["intermediate_size"] = arch.intermediate_size, self._inner_ratio * arch.hidden_size
        check_sizes(self, arch, sizes)
        hf = write_keys(arch, self.config_fields)
        return {name: value for name, value in hf.items() if name != "pad_token_id" or arch.pad_id >= 0}


def check_sizes(family: Family, arch: Architecture, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise a PretrainedError if a model has a size that its format cannot express.

    Args:
      family: the family in whose format the model is written.
      arch: the model's architecture.
      sizes: name of a size -> the model's, and the only one that the format has.
    """
    for name, (actual, required) in sizes.items():
        if actual != required:
            raise PretrainedError(
                f"The Hugging Face format of {next(iter(family.model_types))} requires {name}={required} for hidden_size={arch.hidden_size} and "
                f"num_heads={arch.num_heads}, but this model has {actual}. Save it as native."
            )


def size(num_layers: int, hidden_size: int, num_heads: int, **more: Any) -> dict[str, Any]:
    """Keys of a published size: a feed-forward layer of four times the width and 2,048 positions, unless `more` says otherwise."""
    sizes = dict(num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads)
    return sizes | dict(intermediate_size=4 * hidden_size, max_length=2048) | more


def classifier(head: str) -> tuple[ParamMapping, ...]:
    """Map the classifier of a head."""
    return dense("classifier", {"classification": "score", "span": "qa_outputs"}.get(head, "classifier"))


def fused_block(
    arch: Architecture, layer: str, attention: str, attention_norm: str, feed_forward_norm: str
) -> tuple[ParamMapping, ...]:
    """Map blocks that hold queries, keys and values in one tensor, by group of heads (Megatron-LM).

    Args:
      arch: the architecture.
      layer: the name of a block, "@h.{}".
      attention: the name of its attention.
      attention_norm: the name of the norm before it.
      feed_forward_norm: the name of the norm before the feed-forward layer.
    """
    ours, groups = "decoder/layers", arch.kv_heads
    fused: dict[str, Any] = dict(parts=(arch.num_heads // groups, 1, 1), groups=groups)
    return (
        *dense(f"{ours}/attention/query", f"{layer}.{attention}.query_key_value", part=0, **fused),
        *dense(f"{ours}/attention/key", f"{layer}.{attention}.query_key_value", part=1, **fused),
        *dense(f"{ours}/attention/value", f"{layer}.{attention}.query_key_value", part=2, **fused),
        *dense(f"{ours}/attention/output", f"{layer}.{attention}.dense", inputs=2),
        *norm(f"{ours}/attention_norm", f"{layer}.{attention_norm}"),
        *norm(f"{ours}/feed_forward_norm", f"{layer}.{feed_forward_norm}"),
        *dense(f"{ours}/feed_forward/up", f"{layer}.mlp.dense_h_to_4h"),
        *dense(f"{ours}/feed_forward/down", f"{layer}.mlp.dense_4h_to_h"),
    )

"""ConvBERT (Jiang et al. 2020, arXiv:2008.02496): ELECTRA, half of whose heads are convolutions with weights from the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.config import key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import (
    END_SUMMARY,
    FIX,
    ConfigField,
    FactorizedConfig,
    ParamMapping,
    dense,
    given,
    tensor,
    with_defaults,
    without,
    write_keys,
)
from lm_research.models.families.electra import Electra
from lm_research.models.families.encoder_weights import replaced

HEAD_RATIO = 2  # heads of BERT per head of attention


@dataclasses.dataclass(frozen=True)
class ConvBertConfig(FactorizedConfig):
    """Model section of ConvBERT."""

    mlp_groups: int = key(1, "Number of groups of the feed-forward layers' inputs and outputs.", low=1, high=2**10)


class ConvBert(Electra):
    """ELECTRA with convolutions in place of half of the heads (Jiang et al. 2020)."""

    # Jiang et al. 2020, section 5.1 and the released models.
    sizes = {
        "small": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128),
        "medium_small": dict(
            num_layers=12, hidden_size=384, num_heads=8, intermediate_size=1536, embedding_size=128, mlp_groups=2
        ),
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
    }
    traits = without(Electra.traits, "pooler_activation") | dict(choice_pooling="end")
    run_traits = Electra.run_traits | dict(span_conv_width=9)

    model_types = {"convbert": "ConvBert"}
    classes = without(Electra.classes, "ForPreTraining", "ForCausalLM")
    config_fields = (
        ConfigField("embedding_size", "embedding_size", 768),
        ConfigField("span_conv_width", "conv_kernel_size", 9),
        ConfigField("mlp_groups", "num_groups", 1),
        *with_defaults((field for field in Bert.config_fields if field.field != "causal"), {"pad_token_id": 1}),
    )
    other_keys = {"head_ratio": Size}
    required = END_SUMMARY | {"is_decoder": False}
    decoder_config = None
    base_prefix = "convbert."

    @override
    def run_fields(self, config: Any) -> dict[str, Any]:
        fields = {**super().run_fields(config), "pooler_activation": "gelu", "mlp_groups": config.mlp_groups}
        return fields | _heads(config.hidden_size, config.num_heads, HEAD_RATIO)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        heads = _heads(fields["hidden_size"], fields["num_heads"], given(hf, "head_ratio", HEAD_RATIO))
        if fields["hidden_size"] != 2 * heads["num_heads"] * heads["head_size"]:
            raise PretrainedError(
                f"config.json: hidden_size is {fields['hidden_size']}, which is not a multiple of 2 x {heads['num_heads']}, the number "
                f"of heads that num_attention_heads and head_ratio define. {FIX}"
            )
        return fields | heads | {"pooler_activation": fields["activation"]}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = write_keys(arch.replace(embedding_size=arch.embedding_width), self.config_fields)
        return hf | {"num_attention_heads": HEAD_RATIO * arch.num_heads, "head_ratio": HEAD_RATIO}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers/attention/span_convolution", "@encoder.layer.{}.attention.self"
        own = (
            *tensor(f"{ours}/depthwise/filters", f"{theirs}.key_conv_attn_layer.depthwise.weight"),
            *tensor(f"{ours}/pointwise/filters", f"{theirs}.key_conv_attn_layer.pointwise.weight"),
            *tensor(f"{ours}/pointwise/offset", f"{theirs}.key_conv_attn_layer.bias"),
            *dense(f"{ours}/weights", f"{theirs}.conv_kernel_layer"),
            *dense(f"{ours}/value", f"{theirs}.conv_out_layer"),
            *tensor("encoder/layers/feed_forward/up/filters", "@encoder.layer.{}.intermediate.dense.weight"),
            *tensor("encoder/layers/feed_forward/down/filters", "@encoder.layer.{}.output.dense.weight"),
            *dense("pooler/dense", "classifier.dense"),
        )
        return replaced(super().weights(arch, head), own)


def _heads(width: int, heads: int, ratio: int) -> dict[str, int]:
    """Numbers of heads of attention, which are as many as those of convolutions, and their width."""
    count = max(1, heads // ratio)
    return dict(num_heads=count, head_size=width // count // 2)


FAMILIES.register("convbert", ConvBertConfig)(ConvBert())

"""NeoBERT (Le Breton et al. 2025, arXiv:2502.19587): a deep pre-norm encoder with rotary positions, RMSNorm and gated layers.

Its checkpoints have the layout of the authors' code (https://huggingface.co/chandar-lab/NeoBERT), which transformers does not include.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.config import ModelConfig
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import ConfigField, ParamMapping, dense, given, norm, tensor, write_keys


class NeoBert(Family):
    """A deep pre-norm encoder with rotary positions, RMSNorm and gated layers (Le Breton et al. 2025)."""

    # Le Breton et al. 2025, table 1: 250M parameters. The intermediate size of the paper and of config.json is that of a layer without a
    # gate and as many parameters; here it is the actual one, 2/3 of it.
    sizes = {"base": dict(num_layers=28, hidden_size=768, num_heads=12, intermediate_size=2048)}
    traits = dict(
        norm="pre",
        norm_kind="rms",
        positions="rotary",
        rotary_interleaved=True,
        gated=True,
        activation="silu",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        tied=False,
        masked_transform=False,
    )

    model_types = {"neobert": "NeoBERT"}
    reference = "its authors' code (chandar-lab/NeoBERT), written again in the tests"
    classes = {
        "LMHead": "masked_lm",
        "ForSequenceClassification": "classification",
        "HFForSequenceClassification": "classification",
        "": "none",
    }
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 32064),
        ConfigField("hidden_size", "hidden_size", 768),
        ConfigField("num_layers", "num_hidden_layers", 28),
        ConfigField("num_heads", "num_attention_heads", 12),
        ConfigField("intermediate_size", "intermediate_size", 3072),
        ConfigField("max_length", "max_length", 1024),
        ConfigField("dropout_rate", "dropout", 0.0),
        ConfigField("norm_epsilon", "norm_eps", 1e-6),
        ConfigField("pad_id", "pad_token_id", 0),
    )
    other_keys = {"classifier_dropout": Rate}
    required = {"hidden_act": ("SwiGLU", "swiglu"), "rms_norm": True, "rope": True, "ngpt": False}

    base_prefix = "model."

    @override
    def run_fields(self, config: ModelConfig) -> dict[str, Any]:
        return dict(norm_epsilon=1e-6, classifier_dropout_rate=config.dropout_rate)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        fields["intermediate_size"] = -(int(2 * fields["intermediate_size"] / 3) // -8) * 8
        fields["classifier_dropout_rate"] = given(hf, "classifier_dropout", 0.1)
        return from_flat(**fields | self.traits)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        if arch.intermediate_size % 8:
            raise PretrainedError(
                f"NeoBERT's format requires an intermediate size that is a multiple of 8, but this model has {arch.intermediate_size}. Save it "
                "in the native format."
            )
        hf = write_keys(arch, self.config_fields) | {"intermediate_size": arch.intermediate_size * 3 // 2}
        return hf | {"hidden_act": "SwiGLU", "classifier_dropout": arch.classifier_dropout_rate}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers", "@transformer_encoder.{}"
        by_head: dict[str, Any] = dict(parts=(1, 1, 1), groups=arch.num_heads)
        return (
            *tensor("encoder/embeddings/tokens", "@encoder.weight"),
            *norm(f"{ours}/attention_norm", f"{theirs}.attention_norm"),
            *dense(f"{ours}/attention/query", f"{theirs}.qkv", part=0, **by_head),
            *dense(f"{ours}/attention/key", f"{theirs}.qkv", part=1, **by_head),
            *dense(f"{ours}/attention/value", f"{theirs}.qkv", part=2, **by_head),
            *dense(f"{ours}/attention/output", f"{theirs}.wo", inputs=2),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.ffn_norm"),
            *dense(f"{ours}/feed_forward/gate", f"{theirs}.ffn.w12", part=0, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.ffn.w12", part=1, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.ffn.w3"),
            *norm("encoder/final_norm", "@layer_norm"),
            *tensor("masked_lm/bias", "decoder.bias"),
            *tensor("masked_lm/table", "decoder.weight"),
            # The model without a head has no pooler, although files of a classifier have a tensor of that name.
            *dense("pooler/dense", "@pooler.dense" if head == "none" else "dense"),
            *dense("classifier", "classifier"),
        )


FAMILIES.register("neobert")(NeoBert())

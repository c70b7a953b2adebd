"""Seed-OSS (ByteDance Seed 2025): Llama with biases on queries, keys and values, wide heads, and dropout of branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, given, with_defaults
from lm_research.models.families.llama_like import LlamaLike


class SeedOss(LlamaLike):
    """A decoder with Llama's layers, and biases on queries, keys and values (ByteDance Seed 2025)."""

    # The released model's config.json.
    sizes = {
        "36b": dict(
            num_layers=64, hidden_size=5120, num_heads=80, num_kv_heads=8, head_size=128, intermediate_size=27648
        )
    }
    run_traits = {**LlamaLike.run_traits, "qkv_bias": True, "rotary_theta": 1e7}
    model_types = {"seed_oss": "SeedOss"}
    config_fields = (
        *with_defaults(
            LlamaLike.config_fields,
            {
                "vocab_size": 155136,
                "intermediate_size": 27648,
                "num_hidden_layers": 64,
                "num_attention_heads": 80,
                "max_position_embeddings": 524288,
                "attention_dropout": 0.1,
                "pad_token_id": 1,
            },
        ),
        ConfigField("dropout_rate", "residual_dropout", 0.1),
    )
    other_keys = {**LlamaLike.other_keys, "attention_bias": bool, "attention_out_bias": bool, "mlp_bias": bool}

    _defaults = {"num_key_value_heads": 8, "head_dim": 128}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        biases = dict(qkv_bias=given(hf, "attention_bias", True), output_bias=given(hf, "attention_out_bias", False))
        return super().read(hf) | biases

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        return super().to_hf(arch) | dict(attention_bias=last.query_bias, attention_out_bias=last.output_bias)


FAMILIES.register("seed_oss")(SeedOss())

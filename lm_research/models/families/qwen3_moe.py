"""Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3's layers with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.layer_kinds import FULL, SLIDING
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.families.mixtral import ScaledExpertsConfig
from lm_research.models.families.qwen2_moe import Qwen2Moe

_WINDOW_KEYS = ("layer_types", "max_window_layers")  # it has a window in all layers or in none


class Qwen3Moe(Qwen2Moe):
    """A decoder with Qwen3's layers and a mixture of experts (Yang et al. 2025)."""

    # Yang et al. 2025, table 2; intermediate_size is that of an expert.
    sizes = {
        "30b_a3b": dict(
            num_layers=48,
            hidden_size=2048,
            num_heads=32,
            num_kv_heads=4,
            head_size=128,
            intermediate_size=768,
            num_experts=128,
            experts_per_token=8,
            normalize_experts=True,
        ),
        "235b_a22b": dict(
            num_layers=94,
            hidden_size=4096,
            num_heads=64,
            num_kv_heads=4,
            head_size=128,
            intermediate_size=1536,
            num_experts=128,
            experts_per_token=8,
            normalize_experts=True,
        ),
    }
    traits = {**LlamaLike.traits, "query_key_norm": "head"}
    run_traits = {**LlamaLike.run_traits, "rotary_theta": 1e6}
    model_types = {"qwen3_moe": "Qwen3Moe"}
    config_fields = with_defaults(
        Qwen2Moe.config_fields, {"num_attention_heads": 32, "intermediate_size": 6144, "num_experts_per_tok": 8}
    )
    other_keys = {
        **{
            name: kind
            for name, kind in Qwen2Moe.other_keys.items()
            if not name.startswith("shared") and name not in ("qkv_bias", *_WINDOW_KEYS)
        },
        "attention_bias": bool,
    }

    _defaults = {
        "num_key_value_heads": 4,
        "num_experts": 128,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    _count_key = "num_local_experts"
    _span_prefix = "transformer."

    @override
    def _shared(self, config: Any) -> Mapping[str, Any]:
        return {}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return {name: value for name, value in super().to_hf(arch).items() if name not in _WINDOW_KEYS}

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        return [SLIDING if window else FULL] * depth


FAMILIES.register("qwen3_moe", ScaledExpertsConfig)(Qwen3Moe())

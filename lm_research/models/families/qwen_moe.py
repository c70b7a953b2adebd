"""Qwen's mixtures of experts: Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671) and Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Count, Size
from lm_research.config import key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, dense, with_defaults
from lm_research.models.families.decoder_weights import expert_weights
from lm_research.models.families.layer_kinds import FULL, SLIDING, shortest
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.families.mixtral import ExpertsConfig
from lm_research.models.families.qwen2 import Qwen2

_WINDOW_KEYS = ("layer_types", "max_window_layers")  # Qwen3-MoE has a window in all layers or in none
_SPARSE = ("num_experts", "experts_per_token", "normalize_experts", "shared_expert_size")


@dataclasses.dataclass(frozen=True)
class QwenMoeConfig(ExpertsConfig):
    """Model section of Qwen's mixtures of experts."""

    shared_expert_size: int = key(0, "Width of an expert that all tokens use; 0 for none.", low=0, high=2**20)
    normalize_experts: bool = key(False, "Whether the weights of a token's experts sum to one.")


class Qwen2Moe(Qwen2):
    """A decoder with Qwen2's layers, a mixture of experts, and an expert that all tokens use (Yang et al. 2024)."""

    # Yang et al. 2024, table 1 (57B-A14B), and the released Qwen1.5-MoE-A2.7B; intermediate_size is that of an expert.
    sizes = {
        "a2.7b": dict(
            num_layers=24,
            hidden_size=2048,
            num_heads=16,
            intermediate_size=1408,
            num_experts=60,
            experts_per_token=4,
            shared_expert_size=5632,
        ),
        "57b_a14b": dict(
            num_layers=28,
            hidden_size=3584,
            num_heads=28,
            num_kv_heads=4,
            intermediate_size=2560,
            num_experts=64,
            experts_per_token=8,
            shared_expert_size=20480,
        ),
    }
    model_types = {"qwen2_moe": "Qwen2Moe"}
    config_fields = (
        *with_defaults(
            Qwen2.config_fields,
            {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5632},
        ),
        ConfigField("experts_per_token", "num_experts_per_tok", 4),
        ConfigField("normalize_experts", "norm_topk_prob", False),
        ConfigField("balance_weight", "router_aux_loss_coef", 1e-3),
    )
    other_keys = {
        **Qwen2.other_keys,
        "num_experts": Count,
        "num_local_experts": Count,
        "moe_intermediate_size": Size,
        "shared_expert_intermediate_size": Size,
        "decoder_sparse_step": Size,
        "mlp_only_layers": list[Count],
        "sliding_window": Count,
        "qkv_bias": bool,
    }
    required: Mapping[str, Any] = {"qkv_bias": True}

    _defaults = {
        **Qwen2._defaults,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }

    @override
    def run_fields(self, config: QwenMoeConfig) -> Mapping[str, Any]:
        return {**self.run_traits, **{name: getattr(config, name) for name in (*_SPARSE, "balance_weight")}}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        # Only layers with experts have these.
        return {name: value for name, value in super().read(hf).items() if name not in _SPARSE}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        sparse = [number for number, spec in enumerate(arch.layer_specs) if spec.num_experts]
        spec = arch.layer_specs[sparse[0]] if sparse else arch.layer_specs[0]
        plain = [one.intermediate_size for one in arch.layer_specs if not one.num_experts]
        return (
            super().to_hf(arch)
            | {
                "num_experts_per_tok": spec.experts_per_token,
                "norm_topk_prob": spec.normalize_experts,
                self._count_key: spec.num_experts,
                "moe_intermediate_size": spec.intermediate_size,
                "intermediate_size": plain[0] if plain else arch.intermediate_size,
                "mlp_only_layers": [number for number in range(arch.num_layers) if number not in sparse],
                "decoder_sparse_step": 1,
            }
            | ({"shared_expert_intermediate_size": spec.shared_expert_size} if spec.shared_expert_size else {})
        )

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        count = max(spec.num_experts for spec in arch.layer_specs)
        ours, theirs = "decoder/layers/feed_forward", "@layers.{}.mlp"
        names = ("gate_proj", "up_proj", "down_proj")
        shared = [
            dense(f"{ours}/shared/{name.removesuffix('_proj')}", f"{theirs}.shared_expert.{name}") for name in names
        ]
        return (
            *super().weights(arch, head),
            *expert_weights(count, "mlp.gate", "mlp.experts.{}", *names),
            *(weight for pair in shared for weight in pair),
            *dense(f"{ours}/shared_gate", f"{theirs}.shared_expert_gate"),
        )

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        last = self._get(hf, "max_window_layers") if window else 0
        return [SLIDING if number % 2 == 0 and number < last else FULL for number in range(depth)]

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        layers, depth = super()._pattern(hf, fields), fields["num_layers"]
        given = super().read(hf)
        count = hf.get("num_experts") or hf.get("num_local_experts") or self._defaults["num_experts"]
        experts = {name: given[name] for name in _SPARSE if name in given} | {
            "num_experts": count,
            "intermediate_size": self._get(hf, "moe_intermediate_size"),
            "shared_expert_size": self._get(hf, "shared_expert_intermediate_size") or 0,
        }
        step, plain = self._get(hf, "decoder_sparse_step"), set(self._get(hf, "mlp_only_layers") or ())
        sparse = [number not in plain and (number + 1) % step == 0 for number in range(depth)]
        return shortest(
            [dict(layers[n % len(layers)]) | (experts if is_sparse else {}) for n, is_sparse in enumerate(sparse)]
        )

    _count_key = "num_experts"


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
    required: Mapping[str, Any] = {}

    _defaults = {
        **Qwen2Moe._defaults,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "moe_intermediate_size": 768,
    }
    _count_key = "num_local_experts"

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return {name: value for name, value in super().to_hf(arch).items() if name not in _WINDOW_KEYS}

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        return [SLIDING if window else FULL] * depth


FAMILIES.register("qwen2_moe", QwenMoeConfig)(Qwen2Moe())
FAMILIES.register("qwen3_moe", QwenMoeConfig)(Qwen3Moe())

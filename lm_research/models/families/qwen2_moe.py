"""Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2's layers with experts, one of which all tokens use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Count, Size
from lm_research.config import key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, dense, given, with_defaults
from lm_research.models.families.decoder_weights import expert_weights
from lm_research.models.families.layer_kinds import FULL, SLIDING, shortest
from lm_research.models.families.mixtral import ScaledExpertsConfig
from lm_research.models.families.qwen2 import Qwen2

_SIZE_KEYS = "num_layers hidden_size num_heads num_kv_heads intermediate_size num_experts experts_per_token".split()
_SIZE_KEYS += ["shared_expert_size"]
_SPARSE = ("num_experts", "experts_per_token", "normalize_experts", "shared_expert_size")  # of layers with experts


@dataclasses.dataclass(frozen=True)
class Qwen2MoeConfig(ScaledExpertsConfig):
    """Model section of Qwen2-MoE."""

    shared_expert_size: int | None = key(
        None, "Width of the expert that all tokens use; None is four times intermediate_size.", low=1, high=2**20
    )


class Qwen2Moe(Qwen2):
    """A decoder with Qwen2's layers, a mixture of experts, and an expert that all tokens use (Yang et al. 2024)."""

    # Yang et al. 2024, table 1 (57B-A14B), and the released Qwen1.5-MoE-A2.7B; intermediate_size is that of an expert.
    sizes = {
        name: dict(zip(_SIZE_KEYS, values, strict=True))
        for name, values in {
            "a2.7b": (24, 2048, 16, 16, 1408, 60, 4, 5632),
            "57b_a14b": (28, 3584, 28, 4, 2560, 64, 8, 20480),
        }.items()
    }
    traits = {name: value for name, value in Qwen2.traits.items() if name != "qkv_bias"}
    run_traits = {**Qwen2.run_traits, "qkv_bias": True}
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
        **dict.fromkeys(("num_experts", "num_local_experts", "sliding_window"), Count),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step"), Size),
        **dict.fromkeys(("qkv_bias", "output_router_logits"), bool),
        "mlp_only_layers": list[Count],
    }

    _defaults = {
        "sliding_window": 4096,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": True,
    }
    _count_key = "num_experts"
    _span_prefix = "model."

    @override
    def run_fields(self, config: ScaledExpertsConfig) -> Mapping[str, Any]:
        names = ("num_experts", "experts_per_token", "normalize_experts", "balance_weight")
        return {**self.run_traits, **{name: getattr(config, name) for name in names}, **self._shared(config)}

    def _shared(self, config: Any) -> Mapping[str, Any]:
        return {"shared_expert_size": config.shared_expert_size or 4 * config.intermediate_size}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in super().read(hf).items() if name not in _SPARSE}
        bias = self._get(hf, "qkv_bias")
        return fields if bias is None else fields | {"qkv_bias": bias}

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
            | ({"qkv_bias": spec.query_bias} if "qkv_bias" in self.other_keys else {})
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
        last = given(hf, "max_window_layers", 28) if window else 0
        return [SLIDING if number % 2 == 0 and number < last else FULL for number in range(depth)]

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        layers, depth = super()._pattern(hf, fields), fields["num_layers"]
        found = super().read(hf)
        count = hf.get("num_experts") or hf.get("num_local_experts") or self._defaults["num_experts"]
        experts = {name: found[name] for name in _SPARSE if name in found} | {
            "num_experts": count,
            "intermediate_size": self._get(hf, "moe_intermediate_size"),
            "shared_expert_size": self._get(hf, "shared_expert_intermediate_size") or 0,
        }
        step, plain = self._get(hf, "decoder_sparse_step"), set(self._get(hf, "mlp_only_layers") or ())
        sparse = [number not in plain and (number + 1) % step == 0 for number in range(depth)]
        return shortest(
            [dict(layers[n % len(layers)]) | (experts if is_sparse else {}) for n, is_sparse in enumerate(sparse)]
        )


FAMILIES.register("qwen2_moe", Qwen2MoeConfig)(Qwen2Moe())

"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Llama's layers with a mixture of experts, two of which each token uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, with_defaults
from lm_research.models.families.decoder_weights import expert_weights
from lm_research.models.families.layer_kinds import KEYS
from lm_research.models.families.llama_like import LlamaLike


@dataclasses.dataclass(frozen=True)
class ExpertsConfig(ModelConfig):
    """Model section of families with experts."""

    num_experts: int = key(8, "Number of experts in a layer.", low=1, high=4096)
    experts_per_token: int = key(2, "Number of experts that each token uses.", low=1, high=4096)
    balance_weight: float = key(1e-3, "Factor on the loss that balances the use of experts.", low=0.0, high=1e6)


@dataclasses.dataclass(frozen=True)
class ScaledExpertsConfig(ExpertsConfig):
    """Model section of families whose experts' weights may be scaled."""

    normalize_experts: bool = key(False, "Whether the weights of a token's experts sum to one.")


class Mixtral(LlamaLike):
    """A decoder with Llama's layers and a mixture of experts (Jiang et al. 2024)."""

    # Jiang et al. 2024, table 1, and the released 8x22B.
    sizes = {
        "8x7b": dict(num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14336),
        "8x22b": dict(num_layers=56, hidden_size=6144, num_heads=48, num_kv_heads=8, intermediate_size=16384),
    }
    run_traits = {**LlamaLike.run_traits, "norm_epsilon": 1e-5, "rotary_theta": 1e6}
    model_types = {"mixtral": "Mixtral"}
    config_fields = (
        *with_defaults(
            LlamaLike.config_fields,
            {"intermediate_size": 14336, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
        ),
        ConfigField("num_experts", "num_local_experts", 8),
        ConfigField("experts_per_token", "num_experts_per_tok", 2),
        ConfigField("balance_weight", "router_aux_loss_coef", 1e-3),
    )
    other_keys = {**LlamaLike.other_keys, "sliding_window": KEYS["sliding_window"], "output_router_logits": bool}
    required = {"router_jitter_noise": (0, 0.0)}  # noise on the router's input in training

    modules = ((r"\.block_sparse_moe\.", (".mlp.",)),)

    _defaults = {"num_key_value_heads": 8, "rope_theta": 1e6}
    _span_prefix = "model."

    @override
    def run_fields(self, config: ExpertsConfig) -> Mapping[str, Any]:
        names = ("num_experts", "experts_per_token", "balance_weight")
        return {**self.run_traits, **{name: getattr(config, name) for name in names}}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        names = ("block_sparse_moe.gate", "block_sparse_moe.experts.{}", "w1", "w3", "w2")
        return (*super().weights(arch, head), *expert_weights(arch.layers[-1].num_experts, *names))


FAMILIES.register("mixtral", ExpertsConfig)(Mixtral())

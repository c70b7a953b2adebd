"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values, and a window in the last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Count
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import given, with_defaults
from lm_research.models.families.layer_kinds import FULL, KEYS, SLIDING
from lm_research.models.families.llama_like import LlamaLike


class Qwen2(LlamaLike):
    """A decoder with Llama's layers, and biases on queries, keys and values (Yang et al. 2024)."""

    # Yang et al. 2024, table 1.
    sizes = {"7b": dict(num_layers=28, hidden_size=3584, num_heads=28, num_kv_heads=4, intermediate_size=18944)}
    traits = {**LlamaLike.traits, "qkv_bias": True, "output_bias": False}
    run_traits = dict(activation="silu", norm_epsilon=1e-6, mlp_bias=False, tied=False, rotary_theta=1e6)
    model_types = {"qwen2": "Qwen2"}
    config_fields = with_defaults(
        LlamaLike.config_fields,
        {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
    )
    other_keys = {**LlamaLike.other_keys, **KEYS, "use_sliding_window": bool, "max_window_layers": Count}

    _defaults = {"num_key_value_heads": 32, "sliding_window": 4096}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        kinds = [spec.attention for spec in arch.layer_specs]
        if "window" not in kinds:
            return super().to_hf(arch)
        return super().to_hf(arch) | {"use_sliding_window": True, "max_window_layers": kinds.index("window")}

    @override
    def _window(self, hf: Mapping[str, Any]) -> int:
        return super()._window(hf) if self._get(hf, "use_sliding_window") else 0

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        full = min(given(hf, "max_window_layers", 28), depth) if window else depth
        return [FULL] * full + [SLIDING] * (depth - full)


FAMILIES.register("qwen2")(Qwen2())

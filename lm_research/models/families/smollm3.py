"""SmolLM3 (Bakouch et al. 2025): Llama without positions in every fourth layer (Yang et al. 2025, arXiv:2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import FIX, given, with_defaults
from lm_research.models.families.layer_kinds import FULL, KEYS, SLIDING, shortest
from lm_research.models.families.llama_like import LlamaLike


class SmolLM3(LlamaLike):
    """A decoder with Llama's layers, some of them without positions (Bakouch et al. 2025)."""

    # The released model's config.json.
    sizes = {
        "3b": dict(num_layers=36, hidden_size=2048, num_heads=16, num_kv_heads=4, intermediate_size=11008),
    }
    run_traits = {
        **LlamaLike.run_traits,
        "tied": True,
        "rotary_theta": 2e6,
        "pattern": ({}, {}, {}, {"positions": "none"}),
    }
    model_types = {"smollm3": "SmolLM3"}
    config_fields = with_defaults(
        LlamaLike.config_fields,
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "pad_token_id": 128004,
        },
    )
    other_keys = {
        **LlamaLike.other_keys,
        **KEYS,
        "attention_bias": bool,
        "mlp_bias": bool,
        "use_sliding_window": bool,
        "no_rope_layers": list[Literal[0, 1]],
        "no_rope_layer_interval": Size,
    }

    _defaults = {"num_key_value_heads": 4, "rope_theta": 2e6}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        rotates = [int(spec.positions == "rotary") for spec in arch.layer_specs]
        windows = any(spec.window for spec in arch.layers)
        return super().to_hf(arch) | {"no_rope_layers": rotates, "use_sliding_window": windows}

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        windowed = bool(window and self._get(hf, "use_sliding_window"))
        return [FULL if rotates or not windowed else SLIDING for rotates in self._rotates(hf, depth)]

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        pattern, depth = super()._pattern(hf, fields), fields["num_layers"]
        positions = ["rotary" if rotates else "none" for rotates in self._rotates(hf, depth)]
        return shortest([{**pattern[i % len(pattern)], "positions": positions[i]} for i in range(depth)])

    def _rotates(self, hf: Mapping[str, Any], depth: int) -> list[bool]:
        """Whether each layer has rotary positions, which 0 in no_rope_layers denies."""
        flags = hf.get("no_rope_layers")
        if flags is None:
            return [(layer + 1) % given(hf, "no_rope_layer_interval", 4) != 0 for layer in range(depth)]
        if len(flags) < depth:
            raise PretrainedError(
                f"config.json: no_rope_layers has {len(flags)} entries, but num_hidden_layers is {depth}; each layer needs one. {FIX}"
            )
        return [bool(flag) for flag in flags[:depth]]


FAMILIES.register("smollm3")(SmolLM3())

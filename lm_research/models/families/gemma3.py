"""Gemma 3 (Gemma Team 2025, arXiv:2503.19786): Gemma 2 with norms of queries and keys, and a full layer after every five with a window.

The two kinds of layers have rotary bases of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import given, with_defaults
from lm_research.models.families.gemma2 import Gemma2, GemmaConfig
from lm_research.models.families.layer_kinds import FULL, SLIDING, rope_by_kind
from lm_research.models.families.rotary import write_rotary
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import Wavelength

# Rotary base of each kind of layer, and its key in files of transformers 4.
THETAS = {FULL: (1e6, "rope_theta"), SLIDING: (1e4, "rope_local_base_freq")}


class Gemma3(Gemma2):
    """Gemma 2 with norms of queries and keys, and five windowed layers to a full one (Gemma Team 2025)."""

    # Gemma Team 2025, table 1, and the released models' files.
    sizes = {
        name: dict(
            num_layers=n,
            hidden_size=d,
            num_heads=h,
            num_kv_heads=g,
            head_size=k,
            intermediate_size=f,
            **more,
        )
        for name, (n, d, h, g, k, f), more in (
            ("270m", (18, 640, 4, 1, 256, 2048), dict(window=512)),
            ("1b", (26, 1152, 4, 1, 256, 6912), dict(window=512)),
            ("4b", (34, 2560, 8, 4, 256, 10240), dict(window=1024)),
            ("12b", (48, 3840, 16, 8, 256, 15360), dict(window=1024)),
            ("27b", (62, 5376, 32, 16, 128, 21504), dict(window=1024, query_pre_attn_scalar=168.0)),
        )
    }
    traits = {**Gemma2.traits, "query_key_norm": "head"}
    run_traits = {**Gemma2.run_traits, "logit_cap": 0.0, "score_cap": 0.0, "window": 512, "rotary_theta": 1e4}

    model_types = {"gemma3_text": "Gemma3"}
    classes = {"ForCausalLM": "causal_lm", "TextForSequenceClassification": "classification", "TextModel": "none"}
    config_fields = with_defaults(Gemma2.config_fields, {"vocab_size": 262208, "max_position_embeddings": 131072})
    other_keys = {**Gemma2.other_keys, "sliding_window_pattern": Size, "rope_local_base_freq": Wavelength}

    _defaults = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    }
    _period = 6

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | {"score_cap": 0.0}  # attn_logit_softcapping has no effect in this family

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, (theta, _) in THETAS.items()}
        rope |= {FULL if spec.attention == "full" else SLIDING: write_rotary(spec) for spec in arch.layers}
        return super().to_hf(arch) | {"rope_parameters": rope}

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        period = given(hf, "sliding_window_pattern", self._period)
        return [SLIDING if number % period else FULL for number in range(1, depth + 1)]

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        return super()._pattern({**hf, "rope_parameters": rope_by_kind(hf, THETAS), "rope_scaling": None}, fields)

    @override
    def _full(self, near: LayerSpec) -> LayerSpec:
        return dataclasses.replace(super()._full(near), rotary_theta=THETAS[FULL][0])


FAMILIES.register("gemma3", GemmaConfig)(Gemma3())

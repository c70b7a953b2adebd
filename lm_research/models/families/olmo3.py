"""OLMo 3 (Team OLMo 2025): OLMo 2 with windows in three of four layers, and longer wavelengths only in the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.layer_kinds import FULL, KEYS, SLIDING, rope_by_kind
from lm_research.models.families.olmo2 import OLMo2

# Kind of layer -> its rotary base, and the key of older files.
THETAS = {FULL: (5e5, "rope_theta"), SLIDING: (5e5, "")}


class OLMo3(OLMo2):
    """A decoder with OLMo 2's layers, of which three in four have windows (Team OLMo 2025)."""

    # The released models' config.json.
    sizes = {
        "7b": dict(num_layers=32, hidden_size=4096, num_heads=32, intermediate_size=11008),
        "32b": dict(num_layers=64, hidden_size=5120, num_heads=40, num_kv_heads=8, intermediate_size=27648),
    }
    run_traits = {**OLMo2.run_traits, "pattern": (*[{"attention": "window", "window": 4096}] * 3, {})}
    model_types = {"olmo3": "Olmo3"}
    other_keys = {**OLMo2.other_keys, **KEYS}

    _defaults = {"sliding_window": 4096}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch)
        rope = hf["rope_parameters"]
        return hf if rope.keys() <= {FULL, SLIDING} else hf | {"rope_parameters": {FULL: rope, SLIDING: rope}}

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        return [FULL if (layer + 1) % 4 == 0 else SLIDING for layer in range(depth)]

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        return super()._pattern({**hf, "rope_parameters": rope_by_kind(hf, THETAS), "rope_scaling": None}, fields)


FAMILIES.register("olmo3")(OLMo3())

"""OLMo 3 (Team OLMo 2025): OLMo 2 with windows in three of four layers, and longer wavelengths only in the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import FIX
from lm_research.models.families.layer_kinds import FULL, KEYS, SLIDING
from lm_research.models.families.olmo2 import OLMo2


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

    _defaults = {"sliding_window": 4096, "rope_theta": 5e5}

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
        """Read rope_scaling, of files before transformers 5, as that of full attention."""
        rope = hf.get("rope_parameters") or {FULL: {"rope_type": "default"}}
        if not rope.keys() <= {FULL, SLIDING}:
            raise PretrainedError(
                f"config.json: rope_parameters has other keys than {FULL} and {SLIDING}, by which this family gives them. {FIX}"
            )
        if not all(isinstance(one, Mapping | None) for one in rope.values()):
            raise PretrainedError(f"config.json: rope_parameters is not an object of objects. {FIX}")
        theta = {"rope_theta": hf["rope_theta"]} if hf.get("rope_theta") else {}
        full = {**theta, **(rope.get(FULL) or {}), **(hf.get("rope_scaling") or {})}
        sliding = rope.get(SLIDING) or {"rope_type": "default"}
        named = {**hf, "rope_parameters": {FULL: full, SLIDING: sliding}, "rope_scaling": None, "rope_theta": None}
        return super()._pattern(named, fields)


FAMILIES.register("olmo3")(OLMo3())

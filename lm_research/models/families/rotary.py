"""Rotary positions in config.json files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Object, short
from lm_research.errors import PretrainedError
from lm_research.models.families.common import check_others
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import ROTARY_SCALINGS, Wavelength

_NUMBERS = {name: Wavelength for names in ROTARY_SCALINGS.values() for name in names}
_TYPES = {"rope_theta": Wavelength, "rope_type": str, "type": str, "partial_rotary_factor": float, **_NUMBERS}
# Keys of config.json -> their types.
KEYS = {"rope_theta": Wavelength, "rope_parameters": Object, "rope_scaling": Object}


def read_rotary(hf: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Read rotary_theta and rotary_scaling.

    Files of transformers 5 have `rope_parameters`; older ones have `rope_theta` and `rope_scaling`, with a `type` or `rope_type`.
    """
    name = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    rope = {key: value for key, value in (hf.get(name) or {}).items() if value is not None}
    check_others(rope, _TYPES, f"config.json: {name}")
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    per_layer_type = any(isinstance(value, dict) for value in rope.values())
    if per_layer_type or kind not in ("default", *ROTARY_SCALINGS) or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise PretrainedError(
            f"config.json: {name} is {short(rope)}, which is not supported (supported: rope_type default, {', '.join(ROTARY_SCALINGS)}, "
            "the same for whole heads and all layers)."
        )
    if kind == "default":
        return dict(rotary_theta=theta, rotary_scaling=())
    rope = {"original_max_position_embeddings": max_length, **rope}
    numbers = sorted((key, float(rope[key])) for key in ROTARY_SCALINGS[kind] if key in rope)
    return dict(rotary_theta=theta, rotary_scaling=(("type", kind), *numbers))


def write_rotary(spec: LayerSpec) -> dict[str, Any]:
    """`rope_parameters` of a layer's spec, the inverse of `read_rotary`."""
    scaling = dict(spec.rotary_scaling)
    return {"rope_type": scaling.pop("type", "default"), "rope_theta": spec.rotary_theta, **scaling}

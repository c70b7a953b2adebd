"""Rotary positions as config.json files say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Object, short
from lm_research.errors import PretrainedError
from lm_research.models.families.common import check_others
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import STRETCHES, Wavelength

_NUMBERS = {name: Wavelength for names in STRETCHES.values() for name in names}
_TYPES = {"rope_theta": Wavelength, "rope_type": str, "type": str, "partial_rotary_factor": float, **_NUMBERS}
KEYS = {"rope_theta": Wavelength, "rope_parameters": Object, "rope_scaling": Object}  # and their types


def read_rotary(hf: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Version 5 files say `rope_parameters`; older ones `rope_theta` and `rope_scaling`, with `type` or `rope_type`."""
    name = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    said = {key: value for key, value in (hf.get(name) or {}).items() if value is not None}
    check_others(said, _TYPES, f"config.json: {name}")
    theta = float(said.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    kind = said.get("rope_type", said.get("type", "default"))
    nested = next((key for key, value in said.items() if isinstance(value, dict)), None)  # blocks of several kinds
    if nested or kind not in ("default", *STRETCHES) or said.get("partial_rotary_factor", 1.0) != 1.0:
        raise PretrainedError(
            f"config.json: {name} is {short(said)}, rotary positions that are not supported (supported: rope_type "
            f"default, {', '.join(STRETCHES)} for whole heads and all blocks)."
        )
    if kind == "default":
        return dict(rotary_theta=theta, rotary_scaling=())
    said = {"original_max_position_embeddings": max_length, **said}
    numbers = sorted((key, float(said[key])) for key in STRETCHES[kind] if key in said)
    return dict(rotary_theta=theta, rotary_scaling=(("type", kind), *numbers))


def write_rotary(spec: LayerSpec) -> dict[str, Any]:
    """rope_parameters, the inverse."""
    scaling = dict(spec.rotary_scaling)
    return {"rope_type": scaling.pop("type", "default"), "rope_theta": spec.rotary_theta, **scaling}

"""Rotary positions in config.json files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Object, short
from lm_research.errors import PretrainedError
from lm_research.models.families.common import check_others, given
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import ROTARY_SCALINGS, Wavelength

_NUMBERS = {name: Wavelength for names in ROTARY_SCALINGS.values() for name in names}
_TYPES = {"rope_theta": Wavelength, "rope_type": str, "type": str, "partial_rotary_factor": float, **_NUMBERS}
# Keys of config.json -> their types.
KEYS: dict[str, Any] = {"rope_theta": Wavelength, "rope_parameters": Object, "rope_scaling": Object}


def read_rotary(
    hf: Mapping[str, Any], kind: str = "", *, max_length: int, theta: float = 10000.0, fraction: float = 1.0
) -> dict[str, Any]:
    """Read the fields rotary_theta, rotary_scaling and rotary_fraction of a LayerSpec.

    Files of transformers 5 have `rope_parameters`, for all layers or by kind of layer; older ones have `rope_theta` and `rope_scaling`,
    with a `type` or `rope_type`, and `partial_rotary_factor`.

    Args:
      hf: the content of config.json.
      kind: the kind of layer, as in `layer_types`.
      max_length: the model's maximum length.
      theta: the family's default of `rope_theta`.
      fraction: the family's default of `partial_rotary_factor`.

    Raises:
      PretrainedError: a value has the wrong type, or is not supported.
    """
    name = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    rope = hf.get(name) or {}
    if isinstance(rope.get(kind), Mapping):
        name, rope = f"{name}: {kind}", rope[kind]
    rope = {key: value for key, value in rope.items() if value is not None}
    check_others(rope, _TYPES, f"config.json: {name}")
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, Mapping) for value in rope.values()) or scaling not in ("default", *ROTARY_SCALINGS):
        raise PretrainedError(
            f"config.json: {name} is {short(rope)}, which is not supported (supported: rope_type default, {', '.join(ROTARY_SCALINGS)}, "
            "for all layers or by the kinds in layer_types)."
        )
    fields = {
        "rotary_theta": float(rope.get("rope_theta") or given(hf, "rope_theta", theta)),
        "rotary_fraction": float(rope.get("partial_rotary_factor") or given(hf, "partial_rotary_factor", fraction)),
    }
    if scaling == "default":
        return {**fields, "rotary_scaling": ()}
    rope = {"original_max_position_embeddings": max_length, **rope}
    numbers = sorted((key, float(rope[key])) for key in ROTARY_SCALINGS[scaling] if key in rope)
    return {**fields, "rotary_scaling": (("type", scaling), *numbers)}


def write_rotary(spec: LayerSpec) -> dict[str, Any]:
    """`rope_parameters` of a layer's spec, the inverse of `read_rotary`."""
    scaling = dict(spec.rotary_scaling)
    hf = {"rope_type": scaling.pop("type", "default"), "rope_theta": spec.rotary_theta, **scaling}
    return hf | ({"partial_rotary_factor": spec.rotary_fraction} if spec.rotary_fraction != 1 else {})

"""Rotary positions in config.json files.

Which keys a family has, and which of two comes first, is what its configuration class in transformers 5.24 reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Object, short
from lm_research.errors import PretrainedError
from lm_research.models.families.common import FIX, check_others, given
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import Wavelength
from lm_research.models.rotary import OPTIONAL, REQUIRED, SHARE, TRAINED

_LISTS = ("short_factor", "long_factor")
_TYPES: dict[str, Any] = {
    "rope_theta": Wavelength,
    "rope_type": str,
    "type": str,
    **{name: float for names in OPTIONAL.values() for name in names},
    **{name: Wavelength for names in REQUIRED.values() for name in names},
    **dict.fromkeys(_LISTS, list[float]),
    "truncate": bool,
}
# Keys of config.json -> their types.
KEYS: dict[str, Any] = {
    "rope_theta": Wavelength,
    "rope_parameters": Object,
    "rope_scaling": Object,
    SHARE: float,
    TRAINED: Wavelength,
}


def read_rotary(
    hf: Mapping[str, Any], kind: str = "", *, max_length: int, theta: float = 10000.0, fraction: float | None = None
) -> dict[str, Any]:
    """Read the fields rotary_theta, rotary_scaling and rotary_fraction of a LayerSpec.

    Files of transformers 5 have `rope_parameters`, for all layers or by kind of layer; older ones have `rope_theta` and `rope_scaling`,
    with a `type` or `rope_type`, and `partial_rotary_factor`.

    Args:
      hf: the content of config.json.
      kind: the kind of layer, as in `layer_types`.
      max_length: the model's maximum length.
      theta: the family's default of `rope_theta`.
      fraction: the family's default of `partial_rotary_factor`; None for families that rotate whole heads and ignore the key.

    Raises:
      PretrainedError: a value has the wrong type, or is not supported.
    """
    name = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    rope = hf.get(name) or {}
    by_kind = "rope_type" not in rope and isinstance(rope.get(kind), Mapping)
    if by_kind:
        name, rope = f"{name}: {kind}", rope[kind]
    ignored = Mapping if "rope_type" in rope else ()  # transformers then reads no parameters by kind
    rope = {key: value for key, value in rope.items() if value is not None and not isinstance(value, ignored)}
    check_others(rope, _TYPES, f"config.json: {name}")
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, Mapping) for value in rope.values()) or scaling not in ("default", *REQUIRED):
        raise PretrainedError(
            f"config.json: {name} is {short(rope)}, which is not supported (supported: rope_type default, {', '.join(REQUIRED)}, "
            "for all layers or by the kinds in layer_types)."
        )
    share = next(one for one in (rope.get(SHARE), given(hf, SHARE, fraction), 1.0) if one is not None)
    if scaling == "proportional":
        rope[SHARE], share = share, 1.0
    elif fraction is None and scaling != "default" and share != 1:
        raise PretrainedError(
            f"config.json: {SHARE} is {share:g}, but this family rotates whole heads. Remove the key. {FIX}"
        )
    fields = {
        "rotary_theta": float(rope.get("rope_theta") or given(hf, "rope_theta", theta)),
        "rotary_fraction": 1.0 if fraction is None else float(share),
    }
    if scaling == "default":
        return {**fields, "rotary_scaling": ()}
    if scaling == "dynamic":  # counts from the maximum length, whatever else the file has
        rope[TRAINED] = max_length
    elif not by_kind and hf.get(TRAINED) is not None:
        rope[TRAINED] = hf[TRAINED]
    rope.setdefault(TRAINED, max_length)
    if scaling in ("yarn", "longrope"):
        rope.setdefault("factor", max_length / rope[TRAINED])
    if by_kind:  # transformers reads this key of flat parameters only
        rope.pop("truncate", None)
    names = (*REQUIRED[scaling], *OPTIONAL.get(scaling, ()))
    pairs = sorted((key, _number(rope[key])) for key in names if key in rope)
    return {**fields, "rotary_scaling": (("type", scaling), *pairs)}


def _number(value: Any) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def write_rotary(spec: LayerSpec) -> dict[str, Any]:
    """`rope_parameters` of a layer's spec, the inverse of `read_rotary`."""
    scaling = {name: list(value) if isinstance(value, tuple) else value for name, value in spec.rotary_scaling}
    if "truncate" in scaling:
        scaling["truncate"] = bool(scaling["truncate"])
    if scaling.get("type") == "dynamic":
        del scaling[TRAINED]
    hf = {"rope_type": scaling.pop("type", "default"), "rope_theta": spec.rotary_theta, **scaling}
    return hf | ({SHARE: spec.rotary_fraction} if spec.rotary_fraction != 1 else {})

"""Kinds of layers in config.json files: `layer_types`, which layers have a window, and positions by kind of layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from lm_research.common.documents import Size, short
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families import rotary
from lm_research.models.families.common import FIX, check_supported, given

FULL, SLIDING = "full_attention", "sliding_attention"
# Keys of config.json -> their types.
KEYS: dict[str, Any] = {"sliding_window": Size, "layer_types": list[Literal["full_attention", "sliding_attention"]]}


def read_kinds(hf: Mapping[str, Any], default: list[str]) -> list[str]:
    """The kind of each layer: `layer_types`, or the default if the key is missing or null."""
    kinds = hf.get("layer_types") or default
    if len(kinds) != len(default):
        raise PretrainedError(
            f"config.json: layer_types has {len(kinds)} entries, but num_hidden_layers is {len(default)}; they must be equal. {FIX}"
        )
    return kinds


def read_pattern(
    hf: Mapping[str, Any], kinds: Sequence[str], window: int, by_kind: bool = True, **rope: Any
) -> list[dict[str, Any]]:
    """Fields of LayerSpec for each layer of the shortest pattern that makes these kinds of layers.

    Args:
      hf: the content of config.json.
      kinds: the kind of each layer.
      window: the window of those with sliding attention.
      by_kind: whether rope_parameters may be given by kind of layer.
      rope: further arguments of rotary.read_rotary.
    """
    if SLIDING in kinds and not window:
        raise PretrainedError(
            f"config.json: layer_types has sliding_attention, but no sliding_window is in use. Set it, or remove layer_types. {FIX}"
        )
    windows = {FULL: 0, SLIDING: window}
    fields = {
        kind: {"window": windows[kind], **rotary.read_rotary(hf, kind if by_kind else "", **rope)}
        for kind in set(kinds)
    }
    return shortest([fields[kind] for kind in kinds])


def rope_by_kind(
    hf: Mapping[str, Any], bases: Mapping[str, tuple[float, str]], scaled: Collection[str] = (FULL,)
) -> dict[str, Any]:
    """`rope_parameters` by kind of layer, of families whose kinds have rotary bases of their own.

    As in transformers, keys next to the kinds have no effect, and the earlier `rope_scaling` adds to the parameters of some kinds.

    Args:
      hf: the content of config.json.
      bases: kind of layer -> the default of its `rope_theta`, and the earlier key of config.json, "" for none.
      scaled: the kinds that `rope_scaling` adds to.

    Raises:
      PretrainedError: the parameters of a kind are not an object.
    """
    found, scaling = given(hf, "rope_parameters", {}), given(hf, "rope_scaling", {})
    check_supported(found, {"truncate": True}, "config.json: rope_parameters")  # read for all kinds by transformers
    rope = {}
    for kind, (theta, key) in bases.items():
        own = given(found, kind, {"rope_type": "default"})
        if not isinstance(own, Mapping):
            raise PretrainedError(
                f"config.json: rope_parameters: {kind} is {short(own)}, but it must be an object. {FIX}"
            )
        rope[kind] = {"rope_theta": given(hf, key, theta), **own, **(scaling if kind in scaled else {})}
    return rope


def shortest(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shortest pattern whose repetition makes these layers."""
    periods = range(1, len(layers))
    fitting = (n for n in periods if all(one == layers[i % n] for i, one in enumerate(layers)))
    return list(layers[: next(fitting, len(layers))])


def write_kinds(arch: Architecture) -> dict[str, Any]:
    """`rope_parameters`, and `layer_types` and `sliding_window` where there are windows; inverts `read_pattern`."""
    kinds = [SLIDING if spec.attention == "window" else FULL for spec in arch.layer_specs]
    specs = dict(zip(kinds, arch.layer_specs, strict=True))
    rope = {kind: rotary.write_rotary(spec) for kind, spec in specs.items()}
    first, *others = rope.values()
    hf: dict[str, Any] = {"rope_parameters": rope if any(one != first for one in others) else first}
    if SLIDING in specs:
        hf["sliding_window"] = specs[SLIDING].window
    return hf | ({"layer_types": kinds} if len(specs) > 1 else {})

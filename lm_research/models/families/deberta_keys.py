"""Keys of DeBERTa's config.json about distances and the convolution next to the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Count, Rate, Size
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.common import FIX, given, read_activation

# Keys of config.json -> their types.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("relative_attention", "position_biased_input", "share_att_key", "legacy"), bool),
    **dict.fromkeys(("pooler_dropout", "cls_dropout"), Rate),
    **dict.fromkeys(("max_relative_positions", "position_buckets"), int),
    "pos_att_type": str | list[str],
    "norm_rel_ebd": str,
    "conv_kernel_size": Count,
    "conv_groups": Size,
    "conv_act": str,
}
TERMS = {"c2p": "query", "p2c": "key"}


def read_distances(hf: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of "disentangled" positions, or none if there are no terms.

    Args:
      hf: the content of config.json.
      fields: the other fields of the architecture.

    Raises:
      PretrainedError: a term is not supported.
    """
    kinds = hf.get("pos_att_type") or ()
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    if unknown := [kind for kind in kinds if kind not in TERMS]:
        raise PretrainedError(
            f"config.json: pos_att_type has {unknown[0]!r:.60}, which is not supported (supported: {', '.join(TERMS)}). {FIX}"
        )
    terms = tuple(term for kind, term in TERMS.items() if kind in kinds)
    if not given(hf, "relative_attention", False) or not terms:  # scores are scaled by the number of terms anyway
        head_width = fields["hidden_size"] // fields["num_heads"]
        return {"attention_scale": (head_width * (1 + len(terms))) ** -0.5} if terms else {}
    longest = given(hf, "max_relative_positions", -1)
    longest = longest if longest > 0 else fields["max_length"]
    buckets = max(given(hf, "position_buckets", -1), 0)
    return dict(
        score_positions="disentangled",
        position_terms=terms,
        position_projections=not given(hf, "share_att_key", False),
        relative_buckets=2 * (buckets or longest),
        relative_max_distance=longest if buckets else 0,
        relative_norm="layer_norm" in given(hf, "norm_rel_ebd", "none").lower(),
    )


def write_distances(arch: Architecture) -> dict[str, Any]:
    """The inverse of `read_distances`."""
    spec, half = arch.layers[-1], arch.relative_buckets // 2
    # Without relative attention the number of terms only scales the scores.
    count = round(spec.attention_scale**-2 / arch.head_width) - 1 if spec.attention_scale else 0
    terms = spec.position_terms or tuple(TERMS.values())[:count]
    return {
        "relative_attention": bool(spec.position_terms),
        "pos_att_type": [kind for kind, term in TERMS.items() if term in terms],
        "position_biased_input": arch.positions == "learned",
        "share_att_key": not spec.position_projections,
        "max_relative_positions": arch.relative_max_distance or half,
        "position_buckets": half if arch.relative_max_distance else -1,
        "norm_rel_ebd": "layer_norm" if arch.relative_norm else "none",
    }


def read_convolution(hf: Mapping[str, Any], num_layers: int) -> list[dict[str, Any]]:
    """The pattern of layers, the first of which may have a convolution."""
    width = hf.get("conv_kernel_size")
    if not width:
        return [{}]
    kind = read_activation("conv_act", given(hf, "conv_act", "tanh"))
    first = dict(conv_width=width, conv_groups=given(hf, "conv_groups", 1), conv_activation=kind)
    return [first, *[dict[str, Any]()] * (num_layers - 1)]


def write_convolution(arch: Architecture) -> dict[str, Any]:
    """The inverse of `read_convolution`."""
    first = arch.layers[0]
    keys = {"conv_kernel_size": first.conv_width, "conv_groups": first.conv_groups, "conv_act": first.conv_activation}
    return keys if first.conv_width else {}

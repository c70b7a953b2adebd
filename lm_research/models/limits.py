"""What a model can be: the range of each number of an Architecture, which numbers go together, and how many parameters they make.

It is plain arithmetic, done before any array or shape is made, so that a wrong number in a file costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lm_research.common.documents import Count, Rate, Size, is_finite
from lm_research.models.architecture import Architecture
from lm_research.models.heads import HEADS, Head
from lm_research.models.layers import ACTIVATIONS

MAX_PARAMETERS = 10**13  # 40 TB in float32, ten times the largest models there are
MAX_LABELS = 2**20
Depth = Annotated[int, Meta(ge=1, le=10_000)]  # blocks; the deepest models there are have some 1,000
Labels = Annotated[int, Meta(ge=1, le=MAX_LABELS)]
Token = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1 is none
Scale = Annotated[float, Meta(ge=0, le=1e9)]
Wavelength = Annotated[float, Meta(ge=1e-3, le=1e30)]

# Field of Architecture -> its range, where that is not the type of the field.
RANGES: dict[str, Any] = {
    "vocab_size": Size, "hidden_size": Size, "num_layers": Depth, "num_heads": Size, "intermediate_size": Size,
    "max_length": Count, "position_offset": Count, "num_types": Count, "embedding_size": Count, "num_kv_heads": Count,
    "head_size": Count, "layer_groups": Depth, "group_size": Depth, "window": Count, "window_from": Count,
    "mup_base_width": Count, "relative_buckets": Annotated[int, Meta(ge=4, le=2**31 - 1)], "relative_max_distance": Size,
    "eos_id": Token, "pad_id": Token, "rotary_theta": Wavelength, "norm_epsilon": Rate, "dropout_rate": Rate,
    "attention_dropout_rate": Rate, "activation_dropout_rate": Rate, "init_std": Scale, "residual_init_std": Scale,
    "attention_scale": Scale, "embedding_scale": Scale, "logit_scale": Scale,
    "activation": Literal[tuple(ACTIVATIONS)], "pooler_activation": Literal["", *ACTIVATIONS],
    "head_activation": Literal["", *ACTIVATIONS], "dtype": Literal["float32", "bfloat16", "float16"],
}  # fmt: skip
# Way of stretching rotary positions -> the numbers it needs.
STRETCHES = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def flaw(arch: Architecture, names: Mapping[str, str] | None = None) -> str:
    """Why there can be no such model, in a sentence without a full stop; "" if there can.

    Args:
      arch: an architecture.
      names: field -> what the file that it was read from calls it.
    """
    inner = flaw(arch.encoder, names) if arch.encoder is not None else ""
    return inner or _out_of_range(arch, names or {}) or _unfitting(arch, names or {}) or _too_large(arch, names or {})


def head_flaw(head: Head) -> str:
    """The same of a head."""
    if head.name not in HEADS:
        return f"there is no head {head.name!r:.60}"
    return (
        "" if 1 <= head.num_labels <= MAX_LABELS else f"num_labels is {head.num_labels}; it is from 1 to {MAX_LABELS}"
    )


def num_parameters(arch: Architecture) -> int:
    """The parameters of the matrices and tables of a model's stacks; norms, biases and heads are left out."""
    width, rows = arch.hidden_size, arch.vocab_size if arch.has_tokens else 0
    if arch.positions == "learned":
        rows += arch.max_length + arch.position_offset
    tables = (rows + arch.num_types) * arch.embedding_width + (0 if arch.tied else arch.vocab_size * width)
    attention = 2 * width * arch.head_width * (arch.num_heads + arch.kv_heads)
    block = attention * (1 if arch.encoder is None else 2) + (3 if arch.gated else 2) * width * arch.intermediate_size
    relative = arch.relative_buckets * arch.num_heads if arch.positions == "relative" else 0
    encoder = num_parameters(arch.encoder) if arch.encoder is not None else 0
    return encoder + tables + relative + block * arch.num_blocks


def _out_of_range(arch: Architecture, names: Mapping[str, str]) -> str:
    for field, kind in RANGES.items():
        value = getattr(arch, field)
        try:
            msgspec.convert(value, kind)
        except (msgspec.ValidationError, OverflowError) as error:
            reason = str(error).replace("`", "")
            return f"{names.get(field, field)} is {value!r:.60}: {reason[:1].lower()}{reason[1:]}"
    return ""


def _unfitting(arch: Architecture, names: Mapping[str, str]) -> str:
    def said(*fields: str) -> str:
        return " and ".join(f"{names.get(field, field)}={getattr(arch, field)}" for field in fields)

    if not arch.head_size and arch.hidden_size % arch.num_heads:
        return f"{said('hidden_size', 'num_heads')} do not go together, as each head takes an equal part of the width"
    if arch.num_heads % arch.kv_heads:
        return (
            f"{said('num_heads', 'num_kv_heads')} do not go together, as each of the latter serves equally many heads"
        )
    if arch.positions == "rotary" and arch.head_width % 2:
        return f"heads are {arch.head_width} wide ({said('hidden_size', 'num_heads', 'head_size')}), but rotary positions turn pairs of numbers"
    if wrong := _stretch(dict(arch.rotary_scaling)):
        return wrong
    if arch.positions == "relative" and arch.relative_max_distance <= arch.relative_buckets // 2:
        more = said("relative_max_distance", "relative_buckets")
        return f"{more} do not go together, as half of the buckets have one distance each"
    if arch.positions == "learned" and arch.max_length < 1:
        return f"its {said('max_length')} leaves no position for a token"
    if arch.vocab_size <= arch.pad_id and arch.position_offset:
        return f"{said('pad_id', 'vocab_size')} do not go together, as there is no such token"
    return ""


def _stretch(scaling: Mapping[str, Any]) -> str:
    if not scaling:
        return ""
    kind = scaling.get("type")
    if kind not in STRETCHES:
        return f"rotary positions of type {kind!r:.60} are not supported (supported: {', '.join(STRETCHES)})"
    for name in STRETCHES[kind]:
        if name not in scaling:
            return f"rotary positions of type {kind} need {name}"
        if not (is_finite(scaling[name]) and 1e-3 <= scaling[name] <= 1e30):
            return f"{name} of the rotary positions is {scaling[name]!r:.60}: expected a number from 0.001 to 1e30"
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        return "high_freq_factor of the rotary positions must be above low_freq_factor"
    return ""


def _too_large(arch: Architecture, names: Mapping[str, str]) -> str:
    found = num_parameters(arch)
    if found <= MAX_PARAMETERS:
        return ""
    sizes = ("vocab_size", "hidden_size", "num_layers", "intermediate_size", "num_heads", "head_size", "max_length")
    most = sorted(sizes, key=lambda field: -getattr(arch, field))[:3]
    said = ", ".join(f"{names.get(field, field)}={getattr(arch, field)}" for field in most)
    return f"the model would have {found:.1e} parameters ({said}), more than any machine holds"

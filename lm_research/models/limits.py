"""Validation of architectures: ranges of their fields, compatibility of fields, and the number of parameters.

This is plain arithmetic, done before any array is allocated, so that a wrong number in a file is found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lm_research.common.documents import Count, Rate, Size, is_finite
from lm_research.models import rotary
from lm_research.models.activations import ACTIVATIONS
from lm_research.models.architecture import Architecture
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.models.layer_spec import LayerSpec

MAX_PARAMETERS = 10**13  # 40 TB in float32, ten times the largest existing models
MAX_LABELS = 2**20
Depth = Annotated[int, Meta(ge=1, le=10_000)]  # blocks; the deepest existing models have about 1,000
Labels = Annotated[int, Meta(ge=1, le=MAX_LABELS)]
Token = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1 for none
Scale = Annotated[float, Meta(ge=0, le=1e9)]
Wavelength = Annotated[float, Meta(ge=1e-3, le=1e30)]

# Field of Architecture -> its range, if that is narrower than its type.
RANGES: dict[str, Any] = {
    "vocab_size": Size,
    "hidden_size": Size,
    "num_layers": Depth,
    "num_heads": Size,
    "intermediate_size": Size,
    "max_length": Count,
    "position_offset": Count,
    "num_types": Count,
    "num_task_types": Count,
    "output_embedding_size": Count,
    "embedding_size": Count,
    "num_kv_heads": Count,
    "head_size": Count,
    "layer_groups": Depth,
    "group_size": Depth,
    "mup_base_width": Count,
    "relative_buckets": Annotated[int, Meta(ge=4, le=2**31 - 1)],
    "relative_max_distance": Count,
    "sep_id": Token,
    "eos_id": Token,
    "pad_id": Token,
    "separate_token": Token,
    "norm_epsilon": Rate,
    "norm_offset": Rate,
    "dropout_rate": Rate,
    "attention_dropout_rate": Rate,
    "activation_dropout_rate": Rate,
    "classifier_dropout_rate": Rate | None,
    "init_std": Scale,
    "residual_init_std": Scale,
    "embedding_scale": Scale,
    "logit_scale": Scale,
    "logit_cap": Scale,
    "balance_weight": Scale,
    "activation": Literal[tuple(ACTIVATIONS)],
    "pooler_activation": Literal["", *ACTIVATIONS],
    "head_activation": Literal["", *ACTIVATIONS],
    "sequence_activation": Literal["", *ACTIVATIONS],
    "dtype": Literal["float32", "bfloat16", "float16"],
}
# Field of LayerSpec -> its range.
LAYER_RANGES: dict[str, Any] = {
    "window": Count,
    "block_sums": Count,
    "random_blocks": Count,
    "window_ahead": Annotated[int, Meta(ge=-1, le=2**31 - 1)],
    "rotary_theta": Wavelength,
    "rotary_fraction": Annotated[float, Meta(gt=0, le=1)],
    "projection_clip": Scale,
    "score_cap": Scale,
    "attention_gate": Literal["", *ACTIVATIONS],
    "attention_scale": Scale,
    "num_heads": Count,
    "num_kv_heads": Count,
    "head_size": Count,
    "intermediate_size": Count,
    "residual_scale": Scale,
    "span_conv_width": Count,
    "conv_width": Count,
    "conv_groups": Size,
    "conv_activation": Literal[tuple(ACTIVATIONS)],
    "mlp_groups": Size,
    "num_experts": Count,
    "experts_per_token": Count,
    "shared_expert_size": Count,
}


def invalid_reason(arch: Architecture, names: Mapping[str, str] | None = None) -> str:
    """Describe why an architecture is invalid, in a sentence without a full stop; "" if it is valid.

    Args:
      arch: an architecture.
      names: field -> its key in the file that the architecture was read from.
    """
    inner = invalid_reason(arch.encoder, names) if arch.encoder is not None else ""
    names = names or {}
    return inner or _out_of_range(arch, names) or _incompatible(arch, names) or _too_large(arch, names)


def invalid_head_reason(head: HeadSpec) -> str:
    """Describe why a head is invalid, as `invalid_reason` does."""
    if head.name not in HEADS:
        return f"there is no head {head.name!r:.60}"
    if 1 <= head.num_labels <= MAX_LABELS:
        return ""
    return f"num_labels is {head.num_labels}; it must be from 1 to {MAX_LABELS}"


def num_parameters(arch: Architecture) -> int:
    """Count the parameters in matrices and tables of a model's stacks; norms, biases and heads are not included."""
    width, rows = arch.hidden_size, arch.vocab_size if arch.has_tokens else 0
    tables = (rows + arch.num_types + arch.num_task_types) * arch.embedding_width
    tables += 0 if arch.tied else arch.vocab_size * (arch.output_embedding_size or arch.output_width)
    if arch.positions == "learned":
        tables += (arch.max_length + arch.position_offset) * arch.position_width
    tables += (arch.embedding_projection + arch.output_projection) * arch.embedding_width * width
    shared = any(spec.uses_relative_table for spec in arch.layers)
    relative = arch.relative_buckets * arch.num_heads if shared else 0
    relative += arch.relative_buckets * arch.num_heads if arch.has_block_sums else 0
    relative += arch.relative_buckets * width if _has(arch, "disentangled") else 0
    encoder = num_parameters(arch.encoder) if arch.encoder is not None else 0
    blocks = sum(_in_block(arch, spec) for spec in (arch.layer_specs * 2)[: arch.num_blocks])
    return encoder + tables + relative + blocks


def _in_block(arch: Architecture, spec: LayerSpec) -> int:
    width = arch.hidden_size
    one = 2 * width * spec.head_size * (spec.num_heads + spec.num_kv_heads)
    attention = one * ((spec.attention != "none") + arch.has_cross_attention)
    if spec.global_tokens:
        attention += width * spec.head_size * (spec.num_heads + 2 * spec.num_kv_heads)
    if spec.own_relative_table:
        attention += arch.relative_buckets * spec.num_heads
    matrices = (3 if spec.gated else 2) * max(1, spec.num_experts)
    feed_forward = matrices * width * spec.intermediate_size // spec.mlp_groups
    shared = (3 if spec.gated else 2) * width * spec.shared_expert_size + width * bool(spec.shared_expert_size)
    distances = len(spec.position_terms) * spec.position_projections * width * spec.num_heads * spec.head_size
    convolution = width * width // spec.conv_groups * spec.conv_width
    if spec.span_conv_width:
        inner = spec.num_heads * spec.head_size
        convolution += spec.span_conv_width * (width + inner * spec.num_heads) + 3 * inner * width
    gate = width * spec.num_heads * spec.head_size if spec.attention_gate else 0
    return attention + gate + feed_forward + shared + width * spec.num_experts + distances + convolution


def _has(arch: Architecture, positions: str) -> bool:
    return any(spec.positions == positions for spec in arch.layers)


def _out_of_range(arch: Architecture, names: Mapping[str, str]) -> str:
    if not arch.layers:
        return "its pattern of layers is empty"
    for fields, ranges in ((arch, RANGES), *((spec, LAYER_RANGES) for spec in dict.fromkeys(arch.layers))):
        for field, kind in ranges.items():
            value = getattr(fields, field)
            try:
                msgspec.convert(value, kind)
            except (msgspec.ValidationError, OverflowError) as error:
                reason = str(error).replace("`", "")
                return f"{names.get(field, field)} is {value!r:.60}: {reason[:1].lower()}{reason[1:]}"
    return ""


def _incompatible(arch: Architecture, names: Mapping[str, str]) -> str:
    def show(*fields: str) -> str:
        return " and ".join(f"{names.get(field, field)}={getattr(arch, field)}" for field in fields)

    if not arch.head_size and arch.hidden_size % arch.num_heads:
        return (
            f"{show('hidden_size', 'num_heads')} are incompatible: the width must be a multiple of the number of heads"
        )
    for spec in arch.kinds:
        if reason := _incompatible_layer(arch, spec, show):
            return reason
    if _has(arch, "relative") and arch.relative_max_distance <= arch.relative_buckets // 2:
        sizes = show("relative_max_distance", "relative_buckets")
        return f"{sizes} are incompatible: half of the buckets have one distance each, which the maximum must exceed"
    if arch.output_embedding_size and arch.tied:
        return f"{show('output_embedding_size')} requires an output table of its own, but the model has tied=True"
    if arch.encoder is not None and arch.shared_tokens and arch.encoder.vocab_size != arch.vocab_size:
        sizes = f"{show('vocab_size')}, and {arch.encoder.vocab_size} in the encoder,"
        return f"{sizes} are incompatible: both sides use one token table"
    if arch.positions == "learned" and arch.max_length < 1:
        return f"its {show('max_length')} leaves no position for a token"
    if arch.norm_before_positions and not arch.embedding_norm:
        return "norm_before_positions=True requires embedding_norm=True"
    if arch.vocab_size <= arch.pad_id and arch.position_offset:
        return f"{show('pad_id', 'vocab_size')} are incompatible: there is no such token"
    if arch.project_tokens and (arch.embedding_norm or arch.num_types or not arch.embedding_projection):
        return "project_tokens=True requires embedding_projection=True and supports neither token types nor a norm"
    if arch.depth_weights and not all(spec.residual != "parallel" and spec.attention != "none" for spec in arch.kinds):
        return "depth_weights=True requires layers with attention and a feed-forward layer, one after the other"
    if arch.depth_weights and arch.encoder is not None:
        return "depth_weights=True does not support attention to an encoder"
    if arch.balance_weight and len({spec.num_experts for spec in arch.kinds if spec.num_experts}) > 1:
        return "its layers have different numbers of experts, whose use cannot be balanced together (balance_weight)"
    if arch.share_layers and len(arch.kinds) > 1:
        return "layers that share parameters must all be of one kind, but its pattern has several"
    return ""


def _incompatible_layer(arch: Architecture, spec: LayerSpec, show: Callable[..., str]) -> str:
    if spec.num_heads % spec.num_kv_heads:
        return f"{show('num_heads', 'num_kv_heads')} are incompatible: the former must be a multiple of the latter"
    if spec.positions == "rotary" and spec.rotary_width % 2:
        sizes = show("hidden_size", "num_heads", "head_size")
        part = "" if spec.rotary_fraction == 1 else f", of which a fraction of {spec.rotary_fraction} is rotated"
        return f"heads are {spec.head_size} wide ({sizes}){part}, but rotary positions rotate pairs of elements"
    if spec.attention in ("window", "chunked", "blocks") and not spec.window:
        return f"a layer has attention={spec.attention}, but window=0"
    if spec.attention == "blocks" and arch.causal:
        return "a layer has attention=blocks, which requires a bidirectional stack"
    if spec.attention == "chunked" and not arch.causal:
        return "a layer has attention=chunked, which requires a causal stack"
    if spec.own_relative_table and spec.positions != "relative":
        return f"a layer has own_relative_table=True and positions={spec.positions}, which has no such table"
    if spec.global_tokens and (arch.causal or spec.attention != "window" or spec.query_key_norm != "none"):
        return "a layer has global_tokens=True, which requires a bidirectional window and query_key_norm=none"
    if spec.block_sums and (arch.causal or not spec.uses_relative_table or spec.global_tokens or spec.span_conv_width):
        return f"a layer has block_sums={spec.block_sums}, which requires a bidirectional stack with a table of relative positions, and neither global tokens nor convolutions"
    if spec.uses_relative_table and spec.num_heads != arch.num_heads:
        return "a layer with relative positions has its own num_heads, but all layers share one table of the stack"
    if reason := _incompatible_distances(arch, spec, show):
        return reason
    if spec.num_experts and not 1 <= spec.experts_per_token <= spec.num_experts:
        return f"experts_per_token={spec.experts_per_token} is not from 1 to num_experts={spec.num_experts}"
    if spec.intermediate_size % spec.mlp_groups or arch.hidden_size % spec.mlp_groups:
        return f"mlp_groups={spec.mlp_groups} does not divide the widths {arch.hidden_size} and {spec.intermediate_size} of a feed-forward layer"
    if spec.num_experts and spec.mlp_groups > 1:
        return (
            f"a layer has num_experts={spec.num_experts} and mlp_groups={spec.mlp_groups}, but experts have no groups"
        )
    if spec.num_experts and spec.inner_norm:
        return f"a layer has num_experts={spec.num_experts} and inner_norm=True, but experts have no norms"
    if spec.shared_expert_size and not spec.num_experts:
        return f"a layer has shared_expert_size={spec.shared_expert_size} and num_experts=0, but only experts share one"
    if spec.num_experts and spec.mlp_bias:
        return f"a layer has num_experts={spec.num_experts} and mlp_bias=True, but experts have no biases"
    if arch.merged_attention and (arch.encoder is None or arch.memory_width != arch.hidden_size):
        return "it has merged_attention=True, which requires an encoder whose states have the width of the decoder"
    if arch.merged_attention and spec.attention == "none":
        return "a layer has attention=none, but merged_attention=True requires attention"
    if spec.window_ahead >= 0 and arch.causal:
        return f"a layer has window_ahead={spec.window_ahead}, but causal windows have no later positions"
    if spec.residual == "parallel" and arch.encoder is not None:
        return "a layer has residual=parallel, which does not support attention to an encoder"
    if spec.residual == "parallel" and spec.attention == "none":
        return "a layer has residual=parallel and attention=none, but parallel branches require attention"
    if spec.residual in ("post", "normed", "output") and not spec.attention_norm:
        return f"a layer has residual={spec.residual}, which requires attention_norm=True"
    if spec.shared_norm and spec.residual != "parallel":
        return f"a layer has shared_norm=True and residual={spec.residual}, but only parallel branches share a norm"
    return _invalid_scaling(spec, dict(spec.rotary_scaling))


def _incompatible_distances(arch: Architecture, spec: LayerSpec, show: Callable[..., str]) -> str:
    if bool(spec.position_terms) != (spec.positions == "disentangled"):
        return f"a layer has positions={spec.positions} and position_terms={spec.position_terms}, but disentangled positions, and only these, have terms"
    if spec.position_terms and spec.num_heads != spec.num_kv_heads:
        return f"{show('num_heads', 'num_kv_heads')} must be equal for disentangled positions"
    longest = arch.relative_max_distance
    if spec.position_terms and longest and longest - 1 <= (arch.relative_buckets + 1) // 4:
        sizes = show("relative_max_distance", "relative_buckets")
        return f"{sizes} are incompatible: a quarter of the rows are single distances, which the maximum must exceed"
    if spec.conv_width and (spec.conv_width % 2 == 0 or arch.hidden_size % spec.conv_groups):
        return f"a layer has conv_width={spec.conv_width} and conv_groups={spec.conv_groups}, but the width must be odd, and the groups divide hidden_size={arch.hidden_size}"
    if spec.span_conv_width and spec.span_conv_width % 2 == 0:
        return f"a layer has span_conv_width={spec.span_conv_width}, but the width must be odd"
    if (spec.conv_width or spec.span_conv_width) and arch.causal:
        return "a layer has a convolution, which requires a bidirectional stack"
    return ""


def _invalid_scaling(spec: LayerSpec, scaling: Mapping[str, Any]) -> str:
    if not scaling:
        return ""
    kind, pairs = scaling.get("type"), spec.rotary_width // 2
    if kind not in rotary.REQUIRED:
        return f"rotary scaling of type {kind!r:.60} is not supported (supported: {', '.join(rotary.REQUIRED)})"
    for name in (*rotary.REQUIRED[kind], *rotary.OPTIONAL.get(kind, ())):
        if name not in scaling and name in rotary.REQUIRED[kind]:
            return f"rotary scaling of type {kind} requires {name}"
        value = scaling.get(name, 1.0)
        values, lowest = value if isinstance(value, tuple) else (value,), 1e-3 if name in rotary.REQUIRED[kind] else 0
        if not all(is_finite(one) and lowest <= one <= 1e30 for one in values):
            return f"{name} of the rotary scaling is {value!r:.60}: expected a number from {lowest} to 1e30"
        if len(values) != (pairs if name in ("short_factor", "long_factor") else 1):
            return f"{name} of the rotary scaling has {len(values)} numbers, but {pairs} pairs of elements are rotated"
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        return "high_freq_factor of the rotary scaling must be above low_freq_factor"
    if kind in ("yarn", "longrope") and min(scaling[rotary.TRAINED], spec.rotary_theta) <= 1:
        return f"rotary scaling of type {kind} requires {rotary.TRAINED} and rope_theta above 1"
    return (
        "rotary scaling of type dynamic requires more than one pair of elements"
        if kind == "dynamic" and pairs < 2
        else ""
    )


def _too_large(arch: Architecture, names: Mapping[str, str]) -> str:
    count = num_parameters(arch)
    if count <= MAX_PARAMETERS:
        return ""
    sizes = ("vocab_size", "hidden_size", "num_layers", "intermediate_size", "num_heads", "head_size", "max_length")
    largest = sorted(sizes, key=lambda field: -getattr(arch, field))[:3]
    shown = ", ".join(f"{names.get(field, field)}={getattr(arch, field)}" for field in largest)
    return f"the model would have {count:.1e} parameters ({shown}), but at most {MAX_PARAMETERS:.0e} are supported"

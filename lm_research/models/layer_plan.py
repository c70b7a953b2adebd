"""The memory layout and execution order of a stack's layers.

Layers with parameters of the same shapes are stacked, [N, ...]: below "layers" if this includes all layers of the stack, else below
"layers/KIND". Layers run in segments: a period of the pattern is traced once and repeated in a loop, so that compile time and memory do
not depend on the depth.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax

from lm_research.models.architecture import Architecture
from lm_research.models.block import block_parts
from lm_research.models.layer_spec import LayerSpec

LONGEST_PERIOD = 64
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of a block's parameters, by path


class Segment(NamedTuple):
    """A part of a stack: `repeats` repetitions of the `period` layers that start at layer `first`."""

    first: int
    period: int
    repeats: int


@functools.lru_cache(maxsize=256)
def segments(arch: Architecture) -> tuple[Segment, ...]:
    """Divide the layers of a stack into segments greedily: each is the one that saves the most traced layers.

    Example: the kinds a b a b a b c make Segment(0, 2, 3) and Segment(6, 1, 1).
    """
    if arch.depth_weights:  # each layer reads the states of all earlier ones, whose number grows
        return tuple(Segment(number, 1, 1) for number in range(arch.num_layers))
    numbers = {spec: number for number, spec in enumerate(arch.kinds)}
    kinds, result, first = [numbers[spec] for spec in arch.layer_specs], [], 0
    while first < len(kinds):
        best = Segment(first, 1, 1)
        for period in range(1, min(LONGEST_PERIOD, (len(kinds) - first) // 2) + 1):
            count = 1
            while kinds[first + count * period : first + (count + 1) * period] == kinds[first : first + period]:
                count += 1
            if period * (count - 1) > best.period * (best.repeats - 1):
                best = Segment(first, period, count)
        result.append(best)
        first += best.period * best.repeats
    return tuple(result)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers whose parameters are stacked.

    Attributes:
      name: name of the kind; "" if all layers are in one stack.
      spec: spec of the first of the layers.
      layers: index of the layer in each row; with shared layers, that of the block.
    """

    name: str
    spec: LayerSpec
    layers: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def stacks(arch: Architecture) -> tuple[Stack, ...]:
    """The stacks that an architecture's layers are stored in."""
    if arch.share_layers:
        return (Stack("", arch.layer_specs[0], tuple(range(arch.num_blocks))),)
    shapes = {spec: _shapes(arch, spec) for spec in arch.kinds}
    rows: dict[Shapes, list[int]] = {}
    for number, spec in enumerate(arch.layer_specs):
        rows.setdefault(shapes[spec], []).append(number)
    groups = [tuple(numbers) for numbers in rows.values()]
    firsts = [arch.layer_specs[numbers[0]] for numbers in groups]
    return tuple(map(Stack, _names(firsts), firsts, groups))


def _shapes(arch: Architecture, spec: LayerSpec) -> Shapes:
    leaves = jax.tree_util.tree_leaves_with_path(block_parts(arch, spec)[1])
    return tuple((jax.tree_util.keystr(path), leaf.shape) for path, leaf in leaves)


# Fields that determine a layer's parameters -> the word for them in the name of a stack.
_NAME_WORDS = {
    "num_experts": "experts",
    "shared_expert_size": "shared",
    "gated": "gated",
    "attention_norm": "attention_norm",
    "residual": "",
    "attention": "",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "head_size": "head_size",
    "intermediate_size": "width",
    "query_key_norm": "query_key_norm",
    "own_relative_table": "relative_table",
    "global_tokens": "global_tokens",
    "block_sums": "block_sums",
    "shared_norm": "shared_norm",
    "query_bias": "query_bias",
    "key_bias": "key_bias",
    "value_bias": "value_bias",
    "output_bias": "output_bias",
    "mlp_bias": "mlp_bias",
    "mix_norm": "mix_norm",
    "attention_gate": "attention_gate",
    "inner_norm": "inner_norm",
    "mlp_groups": "mlp_groups",
    "mlp_output_bias": "mlp_output_bias",
    "conv_width": "conv",
    "span_conv_width": "span_conv",
    "position_projections": "position_projections",
}


def _names(specs: list[LayerSpec]) -> list[str]:
    """Names of stacks by the fields in which they differ, such as "experts_8" and "no_experts"; a single one has no name."""
    if len(specs) == 1:
        return [""]
    for count in range(1, len(_NAME_WORDS) + 1):  # use as few fields as distinguish all stacks
        fields = [field for field in _NAME_WORDS if len({getattr(spec, field) for spec in specs}) > 1][:count]
        names = ["_".join(_word(_NAME_WORDS[field], getattr(spec, field)) for field in fields) for spec in specs]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{number}" for number, name in enumerate(names)]


def _word(name: str, value: object) -> str:
    if value in (0, False, "none"):
        return f"no_{name or 'attention'}"
    return name if value is True else f"{name}_{value}".strip("_")


class LayerSlot(NamedTuple):
    """The location of a layer's parameters: the name of a stack, and a row of it."""

    stack: str
    row: int


@functools.lru_cache(maxsize=256)
def layer_slots(arch: Architecture) -> tuple[LayerSlot, ...]:
    """The slot of each layer."""
    if arch.share_layers:
        return tuple(LayerSlot("", block) for block in arch.block_of_layer)
    slots = {number: LayerSlot(s.name, row) for s in stacks(arch) for row, number in enumerate(s.layers)}
    return tuple(slots[number] for number in range(arch.num_layers))

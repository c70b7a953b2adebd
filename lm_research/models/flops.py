"""Floating-point operations of training, per sequence and per token, as MFU and the planner count them.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax

from lm_research.models.architecture import Architecture
from lm_research.models.attention.module import POSITION_PROJECTIONS
from lm_research.models.definition import ModelDefinition


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of the forward and backward pass over one sequence, by part."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.layers + self.attention + self.head


def train_flops(definition: ModelDefinition, length: int, predicted: float, source_length: int = 0) -> Flops:
    """Count 6 operations per parameter and position, and 12 H K per layer, query and key (Chowdhery et al. 2022, appendix B).

    A weight takes a multiplication and an addition per position in the forward pass, and twice that in the backward pass. Scores and
    weighted values take 2 H K operations each per query and key, times three; causal masks save nothing. The vocabulary projection counts
    for predicted positions only, and small layers of heads are not counted, nor are projections of distances, which a batch shares. A
    "disentangled" term of the scores takes 6 H K per layer, query and key. Keys and values of cross-attention are computed for each source
    position, and those of merged attention for each position of either side. A model inside the model (ELECTRA's generator) counts too.

    Args:
      definition: the model.
      length: L, length of the target, or of the only sequence.
      predicted: M, number of positions with a vocabulary projection.
      source_length: S; 0 without a source.
    """
    layers = attention = 0.0
    for name, stack in _stacks(definition.shapes):
        arch = _architecture(definition, name)
        own_length = source_length if name == "encoder" and source_length else length
        for path, leaf in jax.tree_util.tree_leaves_with_path(stack):
            keys = [key.key for key in path]
            if keys[-1] in ("kernel", "filters") and keys[-2] not in POSITION_PROJECTIONS:
                from_source = "cross_attention" in keys and keys[-2] in ("key", "value")
                from_both = arch.merged_attention and "attention" in keys and keys[-2] in ("key", "value")
                fraction = _used_fraction(definition, arch, f"{name}/layers/" + "/".join(keys))
                uses = arch.num_layers / arch.num_blocks * fraction
                positions = source_length if from_source else own_length + source_length * from_both
                layers += 6.0 * math.prod(leaf.shape) * uses * positions
        terms = [(1 + len(spec.position_terms) / 2) * (spec.attention != "none") for spec in arch.layer_specs]
        widths = [spec.num_heads * spec.head_size for spec in arch.layer_specs]
        self_width = sum(width * count for width, count in zip(widths, terms, strict=True))
        sums = [
            width * (own_length // s.block_sums)
            for width, s in zip(widths, arch.layer_specs, strict=True)
            if s.block_sums
        ]
        attention += 12.0 * own_length * sum(sums)
        cross_width = sum(widths) if arch.encoder is not None else 0
        attention += 12.0 * own_length * (self_width * own_length + cross_width * source_length)
    head = 6.0 * definition.arch.vocab_size * definition.arch.prediction_width * predicted
    return Flops(layers, attention, head)


def train_flops_per_token(
    definition: ModelDefinition, length: int, predicted_fraction: float = 1.0, source_length: int = 0
) -> float:
    """`train_flops` of a sequence divided by its S + L positions; `predicted_fraction` is M / L.

    For a single stack with P counted parameters this is 6 P + 12 N D L.
    """
    return train_flops(definition, length, predicted_fraction * length, source_length).total / (source_length + length)


def _stacks(shapes: Any) -> list[tuple[str, Any]]:
    """All stacks of blocks among a model's parameters, at any depth: (name, parameters of the blocks)."""
    found: list[tuple[str, Any]] = []
    for name, tree in shapes.items():
        if isinstance(tree, dict):
            found += [(name, tree["layers"])] if "layers" in tree else [(f"{name}/{n}", t) for n, t in _stacks(tree)]
    return found


def _used_fraction(definition: ModelDefinition, arch: Architecture, path: str) -> float:
    """The fraction of a kernel that each position uses: less than 1 for experts."""
    layers = definition.layers_of(path)
    assert layers is not None
    spec = arch.layer_specs[layers[0] % arch.num_layers]
    expert = spec.num_experts and "/feed_forward/" in path and not re.search("/(router|shared)", path)
    return spec.experts_per_token / spec.num_experts if expert else 1.0


def _architecture(definition: ModelDefinition, name: str) -> Architecture:
    if "/" in name:  # a model inside the model
        return getattr(definition, name.partition("/")[0]).arch
    return definition.arch.encoder if name == "encoder" and definition.arch.encoder else definition.arch

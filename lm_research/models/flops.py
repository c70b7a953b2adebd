"""Floating-point operations of training: of one row, by part, and per token; what MFU and the planner count.

Legend: L target (or only) length, S source length, M predicted positions, D width, H heads, K head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward pass over one row, by part."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head


def train_flops(definition: ModelDefinition, length: int, predicted: float, source_length: int = 0) -> Flops:
    """6 per parameter and position, and 12 H K per layer, query and key (Chowdhery et al. 2022, appendix B).

    A product of a position with a weight is a multiplication and an addition, and the backward pass makes two such
    products. Scores and mixing are 2 H K each per query and key, three times; causal rows count in full. The vocabulary projection
    counts for the predicted positions only, the heads' own small layers not at all. Keys and values of a cross-attention are
    made for each source position. A model inside the model (ELECTRA's generator) counts too.

    Args:
      definition: the model.
      length: L.
      predicted: M, positions of a row that the vocabulary projection is made for.
      source_length: S; 0 without a source.
    """
    layers = attention = 0.0
    for name, stack in _stacks(definition.shapes):
        arch = _architecture(definition, name)
        reads = source_length if name == "encoder" and source_length else length
        for path, leaf in jax.tree_util.tree_leaves_with_path(stack):
            keys = [key.key for key in path]
            if keys[-1] == "kernel":
                from_source = "cross_attention" in keys and keys[-2] in ("key", "value")
                repeats = (
                    arch.num_layers / arch.num_blocks * _share(definition, arch, f"{name}/layers/" + "/".join(keys))
                )
                layers += 6.0 * math.prod(leaf.shape) * repeats * (source_length if from_source else reads)
        own = sum(spec.num_heads * spec.head_size for spec in arch.layer_specs if spec.attention != "none")
        across = sum(spec.num_heads * spec.head_size for spec in arch.layer_specs) if arch.encoder is not None else 0
        attention += 12.0 * reads * (own * reads + across * source_length)
    head = 6.0 * definition.arch.vocab_size * definition.arch.embedding_width * predicted
    return Flops(layers, attention, head)


def train_flops_per_token(
    definition: ModelDefinition, length: int, predicted_share: float = 1.0, source_length: int = 0
) -> float:
    """`train_flops` of a row divided by its S + L positions: 6 N + 12 layers D L of a model of one stack, N as computed.

    `predicted_share` is M / L.
    """
    return train_flops(definition, length, predicted_share * length, source_length).total / (source_length + length)


def _stacks(shapes: Any) -> list[tuple[str, Any]]:
    """The stacks of blocks among a model's parameters, wherever they are: (name, parameters of the blocks)."""
    found: list[tuple[str, Any]] = []
    for name, tree in shapes.items():
        if isinstance(tree, dict):
            found += [(name, tree["layers"])] if "layers" in tree else [(f"{name}/{n}", t) for n, t in _stacks(tree)]
    return found


def _share(definition: ModelDefinition, arch: Architecture, path: str) -> float:
    """How much of a kernel each position takes: of experts, some."""
    layers = definition.layers_of(path)
    assert layers is not None
    spec = arch.layer_specs[layers[0] % arch.num_layers]
    expert = spec.num_experts and "/feed_forward/" in path and "/router/" not in path
    return spec.experts_per_token / spec.num_experts if expert else 1.0


def _architecture(definition: ModelDefinition, name: str) -> Architecture:
    if "/" in name:  # a model inside the model
        return getattr(definition, name.partition("/")[0]).arch
    return definition.arch.encoder if name == "encoder" and definition.arch.encoder else definition.arch

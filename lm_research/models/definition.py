"""Between NNX modules, which describe, and plain nested dicts of arrays, which the hot path carries.

A `ModelDefinition` holds what does not change (graph, shapes, logical axes). Under jit, `bind` puts a dict of
parameters back into the module and calls it as a pure function of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.heads import HeadSpec, Model
from lm_research.models.layer_plan import stacks
from lm_research.models.layers import Axes
from lm_research.trees import flatten

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelDefinition:
    """A model without its parameters.

    Attributes:
      arch: its architecture.
      head: what it predicts.
      shapes: nested dict of jax.ShapeDtypeStruct, one per parameter; stacked layers have a leading axis N.
      axes: the same structure with tuples of logical axis names ("layers" first where stacked).
      graph, state: the module without and with placeholders of its arrays, see nnx.split.
    """

    arch: Architecture
    head: HeadSpec
    shapes: Params
    axes: Params
    graph: Any
    state: nnx.State[Any, Any]

    def init(self, seed: int | jax.Array) -> Params:
        """Fresh parameters (float32). The same for any mesh, because jax.random is."""
        model = Model(self.arch, self.head, nnx.Rngs(jax.random.key(seed)))
        return nnx.to_pure_dict(nnx.split(model)[1])

    def init_only(self, paths: Collection[str], seed: int, shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Fresh parameters of these paths ("a/b/c") alone, where `shardings` says; the compiler drops what makes the others.

        A sharding of None is the default device.
        """
        if not paths:
            return {}
        placed = {path: shardings[path] for path in paths}

        def pick(seed: Any) -> dict[str, Any]:
            return {path: leaf for path, leaf in flatten(self.init(seed)).items() if path in placed}

        return dict(jax.jit(pick, out_shardings=placed if all(placed.values()) else None)(np.uint32(seed)))

    def bind(self, params: Params) -> Model:
        """The module holding these parameters. Cheap under jit, where it happens once, at tracing."""
        state = jax.tree.map(lambda leaf: leaf, self.state)  # a copy of the structure
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def layers_of(self, path: str) -> tuple[int, ...] | None:
        """The numbers of the layers (of shared ones, the blocks) that are stacked in a parameter; None of one that is no layer's."""
        stack, found, rest = path.partition("/layers/")
        if not found:
            return None
        arch = self.arch.encoder if stack == "encoder" and self.arch.encoder is not None else self.arch
        return next(s.layers for s in stacks(arch) if not s.name or rest.startswith(f"{s.name}/"))

    @property
    def num_params(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))


def define(arch: Architecture, head: HeadSpec) -> ModelDefinition:
    """Describes a model without allocating it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Model(arch, head, nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(state)

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    axes = nnx.to_pure_dict(jax.tree.map(lambda leaf: leaf.axes, state, is_leaf=is_variable))

    def with_layers(shape: jax.ShapeDtypeStruct, names: Axes) -> Axes:
        return ("layers",) * (len(shape.shape) - len(names)) + names

    return ModelDefinition(arch, head, shapes, jax.tree.map(with_layers, shapes, axes), graph, state)

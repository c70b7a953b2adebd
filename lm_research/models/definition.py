"""Model definitions: the link between NNX modules and the plain nested dicts of parameters that the training step carries.

A `ModelDefinition` has everything but the parameters (graph, shapes, logical axes). Under jit, `bind` puts a dict of parameters into the
module, so that its calls are pure functions of them.
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
      arch: the architecture.
      head: the prediction head.
      shapes: nested dict of jax.ShapeDtypeStruct, one per parameter; stacked layers have a leading axis N.
      axes: tuples of logical axis names in the same structure ("layers" first where stacked).
      graph, state: graph definition and abstract state of the module (nnx.split).
    """

    arch: Architecture
    head: HeadSpec
    shapes: Params
    axes: Params
    graph: Any
    state: nnx.State[Any, Any]

    def init(self, seed: int | jax.Array) -> Params:
        """Initialize parameters in float32; they are the same on every mesh, because jax.random is."""
        model = Model(self.arch, self.head, nnx.Rngs(jax.random.key(seed)))
        return nnx.to_pure_dict(nnx.split(model)[1])

    def init_only(self, paths: Collection[str], seed: int, shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Initialize only the parameters with these paths ("a/b/c"); the compiler removes the computation of the others.

        `shardings` gives each path's sharding, or None for the default device.
        """
        if not paths:
            return {}
        placed = {path: shardings[path] for path in paths}

        def pick(seed: Any) -> dict[str, Any]:
            return {path: leaf for path, leaf in flatten(self.init(seed)).items() if path in placed}

        return dict(jax.jit(pick, out_shardings=placed if all(placed.values()) else None)(np.uint32(seed)))

    def bind(self, params: Params) -> Model:
        """Put parameters into the module. Under jit this happens once, at tracing."""
        state = jax.tree.map(lambda leaf: leaf, self.state)  # a copy of the structure
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def layers_of(self, path: str) -> tuple[int, ...] | None:
        """Indices of the layers (or shared blocks) that are stacked in a parameter; None for parameters outside of layers."""
        stack, found, rest = path.partition("/layers/")
        if not found:
            return None
        arch = self.arch.encoder if stack == "encoder" and self.arch.encoder is not None else self.arch
        return next(s.layers for s in stacks(arch) if not s.name or rest.startswith(f"{s.name}/"))

    @property
    def num_params(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))


def define(arch: Architecture, head: HeadSpec) -> ModelDefinition:
    """Define a model without allocating its parameters."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Model(arch, head, nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(state)

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    axes = nnx.to_pure_dict(jax.tree.map(lambda leaf: leaf.axes, state, is_leaf=is_variable))

    def with_layers(shape: jax.ShapeDtypeStruct, names: Axes) -> Axes:
        return ("layers",) * (len(shape.shape) - len(names)) + names

    return ModelDefinition(arch, head, shapes, jax.tree.map(with_layers, shapes, axes), graph, state)

"""Between NNX modules, which describe, and plain nested dicts of arrays, which the hot path carries.

A `ModelDefinition` holds what does not change (graph, shapes, logical axes). Under jit, `bind` puts a dict of
parameters back into the module and calls it as a pure function of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lm_research.models.architecture import Architecture

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A model without its parameters.

    Attributes:
      arch: its architecture.
      shapes: nested dict of jax.ShapeDtypeStruct, one per parameter; stacked layers have a leading axis N.
      axes: the same structure with tuples of logical axis names ("layers" first where stacked).
    """

    arch: Architecture
    shapes: Params
    axes: Params
    _build: Callable[[nnx.Rngs], nnx.Module]
    _graph: Any
    _state: nnx.State

    def init(self, seed: int | jax.Array) -> Params:
        """Fresh parameters (float32). The same for any mesh, because jax.random is."""
        return nnx.to_pure_dict(nnx.split(self._build(nnx.Rngs(jax.random.key(seed))))[1])

    def bind(self, params: Params) -> Any:
        """The module holding these parameters. Cheap under jit, where it happens once, at tracing."""
        state = jax.tree.map(lambda leaf: leaf, self._state)  # a copy of the structure
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

    @property
    def num_params(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))


def define(build: Callable[[nnx.Rngs], nnx.Module], arch: Architecture) -> ModelDefinition:
    """Describes the module that `build` makes, without allocating it."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, state = nnx.split(module)
    shapes = nnx.to_pure_dict(state)
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    axes = nnx.to_pure_dict(jax.tree.map(lambda leaf: leaf.axes, state, is_leaf=is_variable))

    def with_layers(shape: jax.ShapeDtypeStruct, names: tuple) -> tuple:
        return ("layers",) * (len(shape.shape) - len(names)) + names

    return ModelDefinition(arch, shapes, jax.tree.map(with_layers, shapes, axes), build, graph, state)


def count_matmul_params(definition: ModelDefinition) -> int:
    """Parameters that multiply activations once per token: all kernels of the stack, not tables, biases, norms, heads."""
    stack = next(tree["layers"] for tree in definition.shapes.values() if isinstance(tree, dict) and "layers" in tree)
    paths = jax.tree_util.tree_leaves_with_path(stack)
    return sum(math.prod(leaf.shape) for path, leaf in paths if path[-1].key == "kernel")


def train_flops_per_token(definition: ModelDefinition, length: int, predicted_share: float = 1.0) -> float:
    """Floating-point operations of forward and backward pass per token: 6 N + 12 layers D L, N as computed.

    N counts the kernels of the stack, and the vocabulary projection times the share of positions it is computed for
    (the heads' own small layers are left out). Attention counts full rows, causal or not (the convention of Chowdhery et al. 2022, appendix B).
    """
    arch = definition.arch
    head = arch.vocab_size * arch.hidden_size * predicted_share
    return 6.0 * (count_matmul_params(definition) + head) + 12.0 * arch.num_layers * arch.hidden_size * length

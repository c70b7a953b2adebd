"""Low-rank adapters of matrices (LoRA, Hu et al. 2021): W + s A B, where only A and B are trained.

The model itself does not change. Next to each adapted `kernel` [*inputs, *outputs] are `lora_a` [*inputs, R] and `lora_b` [R, *outputs],
each with a leading axis of layers if they are stacked; `bind` adds s A B to the kernel. So adapters work in every model whose layers are
`Dense`, also if layers run in a loop. B starts at zero, so that the initial function is bit for bit that of the base model. s is alpha / R
(section 4.1), or alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023).

The cost: a training step stores the adapted kernels of all layers, and their gradients, which computing (x A) B separately would not.

Legend: R rank.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from typing_extensions import override

from lm_research.config import LoraConfig
from lm_research.errors import ConfigError
from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.heads import Model
from lm_research.models.layers import Dense
from lm_research.trees import flatten, unflatten

A, B = "lora_a", "lora_b"


def is_adapter(path: str) -> bool:
    """Whether a path is that of an adapter's A or B."""
    return path.endswith((f"/{A}", f"/{B}"))


def scale_of(lora: LoraConfig) -> float:
    """The scale s."""
    assert lora.rank is not None
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedDefinition(ModelDefinition):
    """A model with adapters, whose `shapes` and `axes` include those of the adapters.

    Attributes:
      base: the model without adapters.
      lora: the config's section lora: rank, alpha and so on.
      stacked: path of each adapted layer -> whether its kernel has a leading axis of layers.
    """

    base: ModelDefinition
    lora: LoraConfig
    stacked: Mapping[str, bool]

    @override
    def init(self, seed: int | jax.Array) -> Params:
        """Initialize the base's parameters, A from a normal distribution with variance 1 / inputs, and B with zeros."""
        leaves, shapes = flatten(self.base.init(seed)), flatten(self.shapes)
        for layer, stacked in self.stacked.items():
            shape = shapes[f"{layer}/{A}"].shape
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(layer.encode()))
            std = math.prod(shape[stacked:-1]) ** -0.5
            leaves[f"{layer}/{A}"] = std * jax.random.normal(key, shape, jnp.float32)
            leaves[f"{layer}/{B}"] = jnp.zeros(shapes[f"{layer}/{B}"].shape, jnp.float32)
        return unflatten(leaves)

    @override
    def bind(self, params: Params) -> Model:
        return self.base.bind(self.merged(params))

    def merged(self, params: Params) -> Params:
        """The base's parameters, with the adapters' products added to the kernels."""
        leaves = flatten(params)
        for layer, stacked in self.stacked.items():
            if f"{layer}/{A}" not in leaves:  # only a part of the model's parameters was read
                continue
            change = product(leaves.pop(f"{layer}/{A}"), leaves.pop(f"{layer}/{B}"), stacked)
            kernel = leaves[f"{layer}/kernel"]
            leaves[f"{layer}/kernel"] = kernel + (scale_of(self.lora) * change).astype(kernel.dtype)
        return unflatten(leaves)


def product(a: jax.Array, b: jax.Array, stacked: bool) -> jax.Array:
    """Compute A B, [*inputs, *outputs], per layer if they are `stacked`."""

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tensordot(a, b, 1)

    return jax.vmap(multiply)(a, b) if stacked else multiply(a, b)


def adapt(base: ModelDefinition, lora: LoraConfig) -> ModelDefinition:
    """Add adapters to the matrices in `lora.target_modules`; if lora.rank is 0, return the model unchanged.

    Raises:
      ConfigError: a pattern is not a regular expression or matches no matrix, or the rank is larger than a side of a matrix.
    """
    if not lora.rank:
        return base
    matrices, shapes, axes = matrices_of(base), flatten(base.shapes), _axes(base)
    chosen = _chosen(lora.target_modules, matrices)
    stacked, more_shapes, more_axes = {}, {}, {}
    for layer in chosen:
        shape, names = shapes[f"{layer}/kernel"].shape, axes[f"{layer}/kernel"]
        front = names.count("layers")
        middle = front + matrices[layer]
        smaller = min(math.prod(shape[front:middle]), math.prod(shape[middle:]))
        if lora.rank > smaller:
            raise ConfigError(
                f"lora.rank={lora.rank} is larger than the smaller side of {layer}/kernel, {smaller}, so the adapter would not be of low "
                "rank. Lower lora.rank, or choose fewer matrices in lora.target_modules."
            )
        sides = {A: (shape[:middle] + (lora.rank,), names[:middle] + (None,))}
        sides[B] = (shape[:front] + (lora.rank,) + shape[middle:], names[:front] + (None,) + names[middle:])
        for name, (size, places) in sides.items():
            more_shapes[f"{layer}/{name}"] = jax.ShapeDtypeStruct(size, jnp.float32)
            more_axes[f"{layer}/{name}"] = places
        stacked[layer] = front > 0
    return AdaptedDefinition(
        base.arch,
        base.head,
        unflatten(shapes | more_shapes),
        unflatten(axes | more_axes),
        base.graph,
        base.state,
        base,
        lora,
        stacked,
    )


def _axes(definition: ModelDefinition) -> dict[str, tuple[str | None, ...]]:
    """Logical axes by path."""
    pairs = jax.tree_util.tree_leaves_with_path(definition.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {"/".join(str(key.key) for key in path): names for path, names in pairs}


def matrices_of(base: ModelDefinition) -> dict[str, int]:
    """Path of each dense layer -> number of input axes of its kernel."""
    nodes = nnx.iter_graph(base.bind(base.shapes))
    return {"/".join(map(str, path)): len(node.inputs) for path, node in nodes if isinstance(node, Dense)}


def _chosen(targets: Sequence[str], matrices: Mapping[str, int]) -> list[str]:
    chosen: set[str] = set()
    for pattern in targets:
        try:
            matching = {layer for layer in matrices if re.search(pattern, f"{layer}/kernel")}
        except re.error as error:
            raise ConfigError(
                f"config.lora.target_modules: {pattern!r} is not a regular expression ({error}). Separate several patterns by commas; give "
                "patterns that contain commas as a list."
            ) from error
        if not matching:
            known = ", ".join(sorted(matrices))
            raise ConfigError(
                f"config.lora.target_modules: {pattern!r} matches no matrix. This model's matrices are {known}, each with /kernel."
            )
        chosen |= matching
    if not chosen:
        raise ConfigError("config.lora.target_modules is empty. Name matrices, such as attention/(query|value)/.")
    return sorted(chosen)


def adapters_of(params: Params) -> dict[str, jax.Array]:
    """The adapters among parameters, by path."""
    return {path: leaf for path, leaf in flatten(params).items() if is_adapter(path)}


def merged(definition: ModelDefinition, params: Params) -> tuple[ModelDefinition, Params]:
    """Merge adapters into the base's kernels, which computes the same function; a model without adapters is returned unchanged."""
    if not isinstance(definition, AdaptedDefinition):
        return definition, params
    return definition.base, jax.jit(definition.merged)(params)


def dropped(params: Params, rate: float, key: jax.Array | None) -> Params:
    """Apply dropout to the adapters' inputs: rows of A are 0 with probability `rate`, and the rest is scaled by 1 / (1 - rate).

    All positions of a micro-batch share one draw, because adapters are part of the kernel.
    """
    if key is None or not rate:
        return params

    def drop(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = "/".join(str(step.key) for step in path)
        if not name.endswith(f"/{A}"):
            return leaf
        leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return leaf * jax.random.bernoulli(leaf_key, 1.0 - rate, (*leaf.shape[:-1], 1)) / (1.0 - rate)

    return jax.tree_util.tree_map_with_path(drop, params)

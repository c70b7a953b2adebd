"""Low-rank adapters of matrices (LoRA, Hu et al. 2021): W + s A B, where only A and B learn.

The model stays as it is. Beside each adapted `kernel` [*inputs, *outputs] lie `lora_a` [*inputs, R] and `lora_b` [R, *outputs], with the
layers of a stack in front; `bind` adds their product to the kernel. So adapters work for every model whose layers are `Dense`, in the loop
over layers too. B begins at zero: the first function is that of the base, bit for bit. s is alpha / R (section 4.1), or alpha / sqrt(R)
(rsLoRA, Kalajdzievski 2023).

The price: a step holds the adapted kernels of all layers and their gradient once more, where x A B computed apart would not.

Legend: R rank, N layers.
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

from lm_research.config import LoraConfig
from lm_research.errors import ConfigError
from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.heads import Model
from lm_research.models.layers import Dense
from lm_research.trees import flatten, unflatten

A, B = "lora_a", "lora_b"


def is_adapter(path: str) -> bool:
    """Whether a parameter's path is that of an A or a B."""
    return path.endswith((f"/{A}", f"/{B}"))


def scale_of(lora: LoraConfig) -> float:
    """The scale s."""
    assert lora.rank is not None
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedDefinition(ModelDefinition):
    """A model with adapters: `shapes` and `axes` have theirs beside those of `base`.

    Attributes:
      base: the model without them.
      lora: rank, alpha and so on.
      stacked: path of the layer that an adapted kernel belongs to -> whether the kernel has layers in front.
    """

    base: ModelDefinition
    lora: LoraConfig
    stacked: Mapping[str, bool]

    def init(self, seed: int | jax.Array) -> Params:
        """The base's parameters, A from a normal distribution of variance 1 / inputs, and B of zeros."""
        leaves, shapes = flatten(self.base.init(seed)), flatten(self.shapes)
        for layer, stacked in self.stacked.items():
            shape = shapes[f"{layer}/{A}"].shape
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(layer.encode()))
            std = math.prod(shape[stacked:-1]) ** -0.5
            leaves[f"{layer}/{A}"] = std * jax.random.normal(key, shape, jnp.float32)
            leaves[f"{layer}/{B}"] = jnp.zeros(shapes[f"{layer}/{B}"].shape, jnp.float32)
        return unflatten(leaves)

    def bind(self, params: Params) -> Model:
        return self.base.bind(self.merged(params))

    def merged(self, params: Params) -> Params:
        """The base's parameters with the adapters' products added."""
        leaves = flatten(params)
        for layer, stacked in self.stacked.items():
            if f"{layer}/{A}" not in leaves:  # of a part that only some of the parameters were read for
                continue
            change = product(leaves.pop(f"{layer}/{A}"), leaves.pop(f"{layer}/{B}"), stacked)
            kernel = leaves[f"{layer}/kernel"]
            leaves[f"{layer}/kernel"] = kernel + (scale_of(self.lora) * change).astype(kernel.dtype)
        return unflatten(leaves)


def product(a: jax.Array, b: jax.Array, stacked: bool) -> jax.Array:
    """A B, [*inputs, *outputs]; of stacked layers, of each by itself."""

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tensordot(a, b, 1)

    return jax.vmap(multiply)(a, b) if stacked else multiply(a, b)


def adapt(base: ModelDefinition, lora: LoraConfig) -> ModelDefinition:
    """The model with adapters where `lora.target_modules` says; as it is where lora.rank is 0.

    Raises:
      ConfigError: a pattern is no regular expression or fits no matrix, or the rank is larger than a side of one.
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
                f"lora.rank={lora.rank} is larger than the smaller side of {layer}/kernel, {smaller}: it would have no low rank. Lower it, "
                "or narrow lora.target_modules."
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
    """Path of each dense layer -> how many axes of its kernel are inputs."""
    found = nnx.iter_graph(base.bind(base.shapes))
    return {"/".join(map(str, path)): len(node.inputs) for path, node in found if isinstance(node, Dense)}


def _chosen(targets: Sequence[str], matrices: Mapping[str, int]) -> list[str]:
    chosen: set[str] = set()
    for pattern in targets:
        try:
            fits = {layer for layer in matrices if re.search(pattern, f"{layer}/kernel")}
        except re.error as error:
            raise ConfigError(
                f"config.lora.target_modules: {pattern!r} is not a regular expression ({error}). Several are divided by commas; those with "
                "commas of their own are a list."
            ) from error
        if not fits:
            known = ", ".join(sorted(matrices))
            raise ConfigError(
                f"config.lora.target_modules: {pattern!r} fits no matrix. This model's are {known}, each with /kernel."
            )
        chosen |= fits
    if not chosen:
        raise ConfigError("config.lora.target_modules is empty. Name matrices, such as attention/(query|value)/.")
    return sorted(chosen)


def adapters_of(params: Params) -> dict[str, jax.Array]:
    """The adapters among parameters, by path."""
    return {path: leaf for path, leaf in flatten(params).items() if is_adapter(path)}


def merged(definition: ModelDefinition, params: Params) -> tuple[ModelDefinition, Params]:
    """The plain model that computes the same, with the adapters' products in its kernels; one without adapters as it is."""
    if not isinstance(definition, AdaptedDefinition):
        return definition, params
    return definition.base, jax.jit(definition.merged)(params)


def dropped(params: Params, rate: float, key: jax.Array | None) -> Params:
    """The parameters with inputs of the adapters dropped: rows of A are zero with probability `rate`, the rest grows by 1 / (1 - rate).

    A draw holds for all positions of a micro-batch; as adapters are part of the kernel, they cannot see positions apart.
    """
    if key is None or not rate:
        return params

    def drop(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = "/".join(str(step.key) for step in path)
        if not name.endswith(f"/{A}"):
            return leaf
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return leaf * jax.random.bernoulli(own, 1.0 - rate, (*leaf.shape[:-1], 1)) / (1.0 - rate)

    return jax.tree_util.tree_map_with_path(drop, params)

"""Muon (Jordan et al. 2024): the momentum of each hidden matrix, made nearly orthogonal, is its update.

Five steps of a Newton-Schulz iteration bring the singular values of the momentum near 1; the result counts sqrt(max(1, outputs / inputs)).
Hidden matrices are the kernels of blocks, each layer of a stack by itself, an attention's heads flattened. All else, embeddings,
heads, biases, norms and adapters, is AdamW's, at a rate of its own.

The iteration is optax.contrib's; the state is plain: a counter, one first moment of everything, second moments of what is AdamW's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, MuonState, scale_by_muon

from lm_research.config import key
from lm_research.models.definition import Params
from lm_research.training.optimizer import OPTIMIZERS, AdamConfig, chain
from lm_research.trees import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class MuonConfig(AdamConfig):
    adam_learning_rate: float = key(
        3e-4, "Peak learning rate of all parameters except the hidden matrices.", low=0.0, high=1e6
    )
    momentum: float = key(0.95, "Decay rate of the momentum of the hidden matrices.", low=0.0, high=0.999999)


@OPTIMIZERS.register("muon", MuonConfig)
def muon(config: MuonConfig) -> optax.GradientTransformation:
    """Muon of hidden matrices, AdamW of the rest."""
    return optax.chain(chain(config, scale_by_muon_and_adam(config)), adams_rate(config))


class MuonAdamState(NamedTuple):
    """`mu` is of all parameters, `nu` of those that are AdamW's."""

    count: jax.Array  # type: ignore[assignment]  # as optax calls it, and checkpoints do
    mu: Params
    nu: Params


def matrix_axes(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """Which axes of a hidden matrix are inputs and which outputs; None of all other parameters.

    Kernels of blocks are [N, *inputs, *outputs]. Of three axes after N the last of an attention is the output, [H, K, D]; the others' are
    [D, H, K].
    """
    *parents, last = path.split("/")
    if last != "kernel" or "layers" not in parents or ndim < 3:
        return None
    if "feed_forward" in parents and ndim == 4:  # a matrix for each expert
        return MuonDimensionNumbers((2,), (3,))
    inputs = ndim - 2 if parents[-1] == "output" else 1
    return MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, ndim)))


def scale_by_muon_and_adam(config: MuonConfig) -> optax.GradientTransformation:
    """From gradients to the direction before decay; Muon's of hidden matrices, Adam's of the rest."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)

    def axes_of(leaves: dict[str, Any]) -> dict[str, MuonDimensionNumbers]:
        found = {path: matrix_axes(path, leaf.ndim) for path, leaf in leaves.items()}
        return {path: axes for path, axes in found.items() if axes is not None}

    def init(params: Params) -> MuonAdamState:
        leaves = flatten(params)
        rest = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items() if path not in axes_of(leaves)}
        return MuonAdamState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), unflatten(rest))

    def update(gradient: Params, state: MuonAdamState, params: Params | None = None) -> tuple[Params, MuonAdamState]:
        gradients, moments = flatten(gradient), flatten(state.mu)
        axes = axes_of(gradients)

        def part(tree: Any, ours: bool) -> dict[str, Any]:
            return {path: leaf for path, leaf in tree.items() if (path in axes) == ours}

        muons = scale_by_muon(beta=config.momentum, weight_dimension_numbers=axes)
        coefficients = muons.init({}).ns_coeffs
        matrices, first = muons.update(part(gradients, True), MuonState(state.count, part(moments, True), coefficients))
        matrices = {path: _size(axes[path], leaf.shape) * leaf for path, leaf in matrices.items()}
        others, second = adam.update(
            part(gradients, False), optax.ScaleByAdamState(state.count, part(moments, False), flatten(state.nu))
        )
        new = MuonAdamState(second.count, unflatten(first.mu | second.mu), unflatten(second.nu))
        return unflatten(matrices | others), new

    return optax.GradientTransformation(init, update)


def adams_rate(config: MuonConfig) -> optax.GradientTransformation:
    """Brings the direction of what AdamW trains, decay included, to its own learning rate: the step multiplies all by one."""
    share = config.adam_learning_rate / config.learning_rate if config.learning_rate else 1.0

    def update(updates: Params, params: Params | None) -> Params:
        leaves = flatten(updates)
        return unflatten(
            {path: leaf if matrix_axes(path, leaf.ndim) else share * leaf for path, leaf in leaves.items()}
        )

    return optax.stateless(update)


def _size(axes: MuonDimensionNumbers, shape: tuple[int, ...]) -> float:
    inputs, outputs = (math.prod(shape[axis] for axis in side) for side in axes)
    return math.sqrt(max(1.0, outputs / inputs))

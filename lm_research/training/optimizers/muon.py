"""Muon (Jordan et al. 2024): the update of each hidden matrix is its momentum, made nearly orthogonal.

Five steps of a Newton-Schulz iteration bring the singular values of the momentum near 1; the result is scaled by
sqrt(max(1, outputs / inputs)). Hidden matrices are the kernels of blocks, each layer of a stack separately, with an attention's heads
flattened. AdamW updates all other parameters (embeddings, heads, biases, norms and adapters), at its own rate.

The iteration is optax.contrib's. The state is a counter, a first moment of all parameters, and a second moment of those that AdamW updates.
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
    """Settings of Muon, and of AdamW for the other parameters."""

    adam_learning_rate: float = key(
        3e-4, "Peak learning rate of all parameters except the hidden matrices.", low=0.0, high=1e6
    )
    momentum: float = key(0.95, "Decay rate of the momentum of the hidden matrices.", low=0.0, high=0.999999)


@OPTIMIZERS.register("muon", MuonConfig)
def muon(config: MuonConfig) -> optax.GradientTransformation:
    """Muon for hidden matrices, AdamW for the rest."""
    return optax.chain(chain(config, scale_by_muon_and_adam(config)), scale_adam_rate(config))


class MuonAdamState(NamedTuple):
    """The moments: `mu` of all parameters, `nu` of those that AdamW updates."""

    count: jax.Array  # type: ignore[assignment]  # the name in optax and in checkpoints
    mu: Params
    nu: Params


def matrix_axes(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """Find the input and output axes of a hidden matrix; None for all other parameters.

    Kernels of blocks are [N, *inputs, *outputs]. Those with three axes after N are an attention's: [H, K, D] for the output projection,
    [D, H, K] for the others.
    """
    *parents, last = path.split("/")
    if last != "kernel" or "layers" not in parents or ndim < 3:
        return None
    if "feed_forward" in parents and ndim == 4:  # a matrix for each expert
        return MuonDimensionNumbers((2,), (3,))
    inputs = ndim - 2 if parents[-1] == "output" else 1
    return MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, ndim)))


def scale_by_muon_and_adam(config: MuonConfig) -> optax.GradientTransformation:
    """Transform gradients to the direction before decay, by Muon for hidden matrices and Adam for the rest."""
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

        def part(tree: Any, hidden: bool) -> dict[str, Any]:
            return {path: leaf for path, leaf in tree.items() if (path in axes) == hidden}

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


def scale_adam_rate(config: MuonConfig) -> optax.GradientTransformation:
    """Scale the direction of AdamW's parameters, decay included, to their own rate, as the step multiplies all by one rate."""
    ratio = config.adam_learning_rate / config.learning_rate if config.learning_rate else 1.0

    def update(updates: Params, params: Params | None) -> Params:
        leaves = flatten(updates)
        return unflatten(
            {path: leaf if matrix_axes(path, leaf.ndim) else ratio * leaf for path, leaf in leaves.items()}
        )

    return optax.stateless(update)


def _size(axes: MuonDimensionNumbers, shape: tuple[int, ...]) -> float:
    inputs, outputs = (math.prod(shape[axis] for axis in side) for side in axes)
    return math.sqrt(max(1.0, outputs / inputs))

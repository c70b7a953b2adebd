"""Feed-forward layers: a plain or gated one, and a mixture of several of which each position takes a few.

Legend: B batch, L length, R rows (B x L), D model width, F feed-forward width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Axes, Dense, activation, dropout, is_few, make_param
from lm_research.parallel.rules import constrain


class FeedForward(nnx.Module):
    """Two dense layers with an activation between them, D -> F -> D; the inner one multiplied by a third if gated."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner = [(arch.hidden_size, "embed")], [(spec.intermediate_size, "mlp")]
        self.up = Dense(width, inner, arch, rngs, bias=spec.mlp_bias)
        if spec.gated:
            self.gate = Dense(width, inner, arch, rngs, bias=spec.mlp_bias)
        self.down = Dense(inner, width, arch, rngs, std=arch.residual_init_std or None, bias=spec.mlp_bias)
        self.arch, self.spec = arch, spec

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        x_RD = x_BLD.reshape(-1, x_BLD.shape[-1])
        if not (self.up.outputs_first and is_few(x_RD)):
            inner_BLF = self._activated(Dense.__call__, x_BLD)
            inner_BLF = constrain(inner_BLF, "batch", "length", "act_mlp")
            return self.down(dropout(inner_BLF, self.arch.activation_dropout_rate, dropout_key))
        # Few rows stay columns from one product to the next.
        inner_FR = self._activated(Dense.columns, jax.lax.optimization_barrier(x_RD.T))
        return jax.lax.optimization_barrier(self.down.columns(inner_FR)).T.reshape(x_BLD.shape)

    def _activated(self, product: Callable[[Dense, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        name, up = self.arch.activation, product(self.up, x)
        return activation(name, product(self.gate, x)) * up if self.spec.gated else activation(name, up)


class ExpertMatrices(nnx.Module):
    """A matrix for each expert."""

    def __init__(self, shape: tuple[int, ...], axes: Axes, arch: Architecture, rngs: nnx.Rngs, std: float) -> None:
        self.kernel = make_param(rngs, shape, axes, arch, (std or arch.init_std) / arch.width_ratio**0.5)


class Experts(nnx.Module):
    """A mixture of feed-forward layers (Shazeer et al. 2017): each position takes those with the highest router probability.

    All experts compute all positions, and what a position did not take is weighted with zero: exact, and of one shape whatever the router
    says, at the price of all their products.
    """

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner, count = arch.hidden_size, spec.intermediate_size, spec.num_experts
        self.router = Dense([(width, "embed")], [(count, None)], arch, rngs, bias=False)
        into, back = ((count, width, inner), (None, "embed", "mlp")), ((count, inner, width), (None, "mlp", "embed"))
        self.up = ExpertMatrices(*into, arch, rngs, 0.0)
        if spec.gated:
            self.gate = ExpertMatrices(*into, arch, rngs, 0.0)
        self.down = ExpertMatrices(*back, arch, rngs, arch.residual_init_std)
        self.arch, self.spec = arch, spec

    def __call__(
        self, x_BLD: jax.Array, dropout_key: jax.Array | None = None, routing: list[jax.Array] | None = None
    ) -> jax.Array:
        """[B, L, D]; `routing` collects the router's probabilities [B, L, E], before any is left out."""
        arch, spec = self.arch, self.spec
        probs_BLE = jax.nn.softmax(self.router(x_BLD).astype(jnp.float32), axis=-1)
        if routing is not None:
            routing.append(probs_BLE)
        best_BLK, chosen_BLK = jax.lax.top_k(probs_BLE, spec.experts_per_token)
        if spec.normalize_experts:
            best_BLK /= best_BLK.sum(-1, keepdims=True)
        weights_BLE = (jax.nn.one_hot(chosen_BLK, spec.num_experts) * best_BLK[..., None]).sum(-2)

        def into(matrices: ExpertMatrices) -> jax.Array:
            return jnp.einsum("BLD,EDF->BLEF", x_BLD, matrices.kernel[...].astype(x_BLD.dtype))

        inner_BLEF = into(self.up)
        if spec.gated:
            inner_BLEF = activation(arch.activation, into(self.gate)) * inner_BLEF
        else:
            inner_BLEF = activation(arch.activation, inner_BLEF)
        inner_BLEF = constrain(inner_BLEF, "batch", "length", None, "act_mlp")
        inner_BLEF = dropout(inner_BLEF, arch.activation_dropout_rate, dropout_key)
        weighted_BLEF = inner_BLEF * weights_BLE[..., None].astype(inner_BLEF.dtype)
        return jnp.einsum("BLEF,EFD->BLD", weighted_BLEF, self.down.kernel[...].astype(x_BLD.dtype))


def load_balancing(routing_BLE: jax.Array, experts_per_token: int, weights_BL: jax.Array | None = None) -> jax.Array:
    """How unevenly a router loads its experts: experts x sum of (share of positions that took each) x (its mean probability).

    `experts_per_token` if all are loaded alike, more if not (Fedus et al. 2022, equations 4 to 6, with several experts a position).

    Args:
      routing_BLE: the router's probabilities.
      experts_per_token: how many each position takes.
      weights_BL: of positions, 0 leaves one out; None counts all.
    """
    experts = routing_BLE.shape[-1]
    taken_BLE = jax.nn.one_hot(jax.lax.top_k(routing_BLE, experts_per_token)[1], experts).sum(-2)
    weights_BL = jnp.ones(routing_BLE.shape[:2]) if weights_BL is None else weights_BL

    def mean(x_BLE: jax.Array) -> jax.Array:
        return jnp.einsum("BLE,BL->E", x_BLE, weights_BL) / weights_BL.sum()

    return experts * (mean(taken_BLE) * mean(routing_BLE)).sum()

"""Feed-forward layers, plain or gated, and mixtures of experts.

Legend: lm_research/models/__init__.py; here E is experts, and K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Axes, Dense, activation, dropout, is_few, make_param, norm
from lm_research.parallel.rules import constrain


class FeedForward(nnx.Module):
    """Two dense layers D -> F -> D with an activation between them; in a gated layer a third one multiplies the activations."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner = [(arch.hidden_size, "embed")], [(spec.intermediate_size, "mlp")]
        self.up = Dense(width, inner, arch, rngs, bias=spec.mlp_bias)
        if spec.gated:
            self.gate = Dense(width, inner, arch, rngs, bias=spec.mlp_bias)
        bias = spec.mlp_bias if spec.mlp_output_bias is None else spec.mlp_output_bias
        self.down = Dense(inner, width, arch, rngs, std=arch.residual_init_std or None, bias=bias)
        if spec.inner_norm:
            self.inner_norm = norm(arch, spec.intermediate_size)
        self.arch, self.spec = arch, spec

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Apply the layer, [B, L, D]; a dropout_key of None disables dropout."""
        x_RD = x_BLD.reshape(-1, x_BLD.shape[-1])
        if self.spec.inner_norm or not (self.up.outputs_first and is_few(x_RD)):
            inner_BLF = self._activated(Dense.__call__, x_BLD)
            inner_BLF = self.inner_norm(inner_BLF) if self.spec.inner_norm else inner_BLF
            inner_BLF = constrain(inner_BLF, "batch", "length", "act_mlp")
            return self.down(dropout(inner_BLF, self.arch.activation_dropout_rate, dropout_key))
        # Few rows are columns in all products, and transposed only once before and once after.
        inner_FR = self._activated(Dense.apply_to_columns, jax.lax.optimization_barrier(x_RD.T))
        return jax.lax.optimization_barrier(self.down.apply_to_columns(inner_FR)).T.reshape(x_BLD.shape)

    def _activated(self, product: Callable[[Dense, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        name, up = self.arch.activation, product(self.up, x)
        return activation(name, product(self.gate, x)) * up if self.spec.gated else activation(name, up)


class ExpertMatrices(nnx.Module):
    """A stack of matrices, one per expert."""

    def __init__(self, shape: tuple[int, ...], axes: Axes, arch: Architecture, rngs: nnx.Rngs, std: float) -> None:
        self.kernel = make_param(rngs, shape, axes, arch, (std or arch.init_std) / arch.width_ratio**0.5)


class Experts(nnx.Module):
    """A mixture of experts (Shazeer et al. 2017): each position uses the feed-forward layers with the highest router probability.

    Every expert computes every position, and experts that a position does not use have weight zero. This is exact and has static shapes, at
    the cost of all experts' products.
    """

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner, count = arch.hidden_size, spec.intermediate_size, spec.num_experts
        self.router = Dense([(width, "embed")], [(count, None)], arch, rngs, bias=False)
        up, down = ((count, width, inner), (None, "embed", "mlp")), ((count, inner, width), (None, "mlp", "embed"))
        self.up = ExpertMatrices(*up, arch, rngs, 0.0)
        if spec.gated:
            self.gate = ExpertMatrices(*up, arch, rngs, 0.0)
        self.down = ExpertMatrices(*down, arch, rngs, arch.residual_init_std)
        self.arch, self.spec = arch, spec

    def __call__(
        self, x_BLD: jax.Array, dropout_key: jax.Array | None = None, routing: list[jax.Array] | None = None
    ) -> jax.Array:
        """Apply the experts, [B, L, D]; `routing` collects the router's probabilities [B, L, E] before the selection."""
        arch, spec = self.arch, self.spec
        probs_BLE = jax.nn.softmax(self.router(x_BLD).astype(jnp.float32), axis=-1)
        if routing is not None:
            routing.append(probs_BLE)
        top_BLK, chosen_BLK = jax.lax.top_k(probs_BLE, spec.experts_per_token)
        if spec.normalize_experts:
            top_BLK /= top_BLK.sum(-1, keepdims=True)
        weights_BLE = (jax.nn.one_hot(chosen_BLK, spec.num_experts) * top_BLK[..., None]).sum(-2)

        def project(matrices: ExpertMatrices) -> jax.Array:
            return jnp.einsum("BLD,EDF->BLEF", x_BLD, matrices.kernel[...].astype(x_BLD.dtype))

        inner_BLEF = project(self.up)
        if spec.gated:
            inner_BLEF = activation(arch.activation, project(self.gate)) * inner_BLEF
        else:
            inner_BLEF = activation(arch.activation, inner_BLEF)
        inner_BLEF = constrain(inner_BLEF, "batch", "length", None, "act_mlp")
        inner_BLEF = dropout(inner_BLEF, arch.activation_dropout_rate, dropout_key)
        weighted_BLEF = inner_BLEF * weights_BLE[..., None].astype(inner_BLEF.dtype)
        return jnp.einsum("BLEF,EFD->BLD", weighted_BLEF, self.down.kernel[...].astype(x_BLD.dtype))


def load_balancing(routing_BLE: jax.Array, experts_per_token: int, weights_BL: jax.Array | None = None) -> jax.Array:
    """Load-balancing loss: num_experts x sum over experts of (fraction of positions that use it) x (its mean probability).

    It is `experts_per_token` if all experts are used equally often, and larger otherwise (Fedus et al. 2022, equations 4 to 6, with several
    experts per position).

    Args:
      routing_BLE: the router's probabilities.
      experts_per_token: number of experts that each position uses.
      weights_BL: weights of positions, 0 to exclude one; None is 1 for all.
    """
    experts = routing_BLE.shape[-1]
    used_BLE = jax.nn.one_hot(jax.lax.top_k(routing_BLE, experts_per_token)[1], experts).sum(-2)
    weights_BL = jnp.ones(routing_BLE.shape[:2]) if weights_BL is None else weights_BL

    def mean(x_BLE: jax.Array) -> jax.Array:
        return jnp.einsum("BLE,BL->E", x_BLE, weights_BL) / weights_BL.sum()

    return experts * (mean(used_BLE) * mean(routing_BLE)).sum()

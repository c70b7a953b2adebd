"""Feed-forward layers, plain or gated, and mixtures of experts.

Legend: lm_research/models/__init__.py; here E is experts, K experts per token, and S rows: a position for each expert that it uses.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from lm_research.models.activations import activation
from lm_research.models.architecture import Architecture
from lm_research.models.cpu_products import as_columns, as_rows, is_few
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import (
    Axes,
    Dense,
    broadcast_rows,
    dropout,
    make_param,
    named,
    norm,
    zeros_param,
)
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import batch_shards, constrain, length_parts, partition_spec


class GroupedDense(nnx.Module):
    """A dense layer whose inputs and outputs are divided into groups, each with a matrix of its own (Jiang et al. 2020)."""

    outputs_first = False

    def __init__(
        self,
        inputs: Sequence[tuple[int, str | None]],
        outputs: Sequence[tuple[int, str | None]],
        arch: Architecture,
        rngs: nnx.Rngs,
        std: float | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        ((width, inner), (out_width, outer)) = *inputs, *outputs
        self.filters = make_param(rngs, (groups, width // groups, out_width // groups), (None, inner, outer), arch, std)
        self.bias = zeros_param((out_width,), (outer,)) if bias else None

    def __call__(self, x_BLI: jax.Array) -> jax.Array:
        """Apply the layer: [B, L, inputs] -> [B, L, outputs]."""
        filters_GIO = self.filters[...].astype(x_BLI.dtype)
        y_BLGO = jnp.einsum("BLGI,GIO->BLGO", x_BLI.reshape(*x_BLI.shape[:2], *filters_GIO.shape[:2]), filters_GIO)
        y_BLO = y_BLGO.reshape(*x_BLI.shape[:2], -1)
        return y_BLO if self.bias is None else y_BLO + broadcast_rows(self.bias[...].astype(y_BLO.dtype), y_BLO.shape)


class FeedForward(nnx.Module):
    """Two dense layers D -> F -> D with an activation between them; in a gated layer a third one multiplies the activations."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner = [(arch.hidden_size, "embed")], [(spec.intermediate_size, "mlp")]
        make: Any = Dense if spec.mlp_groups == 1 else functools.partial(GroupedDense, groups=spec.mlp_groups)
        self.up = make(width, inner, arch, rngs, bias=spec.mlp_bias)
        if spec.gated:
            self.gate = make(width, inner, arch, rngs, bias=spec.mlp_bias)
        bias = spec.mlp_bias if spec.mlp_output_bias is None else spec.mlp_output_bias
        self.down = make(inner, width, arch, rngs, std=arch.residual_init_std or None, bias=bias)
        if spec.inner_norm:
            self.inner_norm = norm(arch, spec.intermediate_size)
        self.arch, self.spec = arch, spec

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Apply the layer, [B, L, D]; a dropout_key of None disables dropout."""
        x_RD = x_BLD.reshape(-1, x_BLD.shape[-1])
        if self.spec.inner_norm or not (self.up.outputs_first and is_few(x_RD)):
            inner_BLF = self._activated(operator.call, x_BLD)
            inner_BLF = self.inner_norm(inner_BLF) if self.spec.inner_norm else inner_BLF
            inner_BLF = constrain(inner_BLF, "batch", "length", "act_mlp")
            return self.down(dropout(inner_BLF, self.arch.activation_dropout_rate, dropout_key))
        # Few rows are columns in all products, and transposed only once before and once after.
        inner_FR = self._activated(Dense.apply_to_columns, as_columns(x_RD))
        return as_rows(self.down.apply_to_columns(inner_FR), len(x_RD)).reshape(x_BLD.shape)

    def _activated(self, product: Callable[[Any, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        name, up = self.arch.activation, product(self.up, x)
        return activation(name, product(self.gate, x)) * up if self.spec.gated else activation(name, up)


class ExpertMatrices(nnx.Module):
    """A stack of matrices, one per expert."""

    def __init__(self, shape: tuple[int, ...], axes: Axes, arch: Architecture, rngs: nnx.Rngs, std: float) -> None:
        self.kernel = make_param(rngs, shape, axes, arch, (std or arch.init_std) / arch.width_ratio**0.5)


class Experts(nnx.Module):
    """A mixture of experts (Shazeer et al. 2017): each position uses the feed-forward layers with the highest router probability.

    No position is dropped: rows are sorted by expert and multiplied with the matrix of their expert (Gale et al. 2022, MegaBlocks).
    Where the mesh divides experts, each device gathers the rows of its `expert` group, computes those of its own experts, and the
    results are summed and scattered back.
    """

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, inner, count = arch.hidden_size, spec.intermediate_size, spec.num_experts
        self.router = Dense([(width, "embed")], [(count, None)], arch, rngs, bias=False)
        up, down = (
            ((count, width, inner), ("expert", "embed", "mlp")),
            ((count, inner, width), ("expert", "mlp", "embed")),
        )
        self.expert_up = ExpertMatrices(*up, arch, rngs, 0.0)
        if spec.gated:
            self.expert_gate = ExpertMatrices(*up, arch, rngs, 0.0)
        self.expert_down = ExpertMatrices(*down, arch, rngs, arch.residual_init_std)
        if spec.shared_expert_size:
            shared = dataclasses.replace(spec, num_experts=0, intermediate_size=spec.shared_expert_size)
            self.shared = FeedForward(arch, shared, rngs)
            self.shared_gate = Dense([(width, "embed")], [(1, None)], arch, rngs, bias=False)
        self.arch, self.spec = arch, spec

    def __call__(
        self, x_BLD: jax.Array, dropout_key: jax.Array | None = None, routing: list[jax.Array] | None = None
    ) -> jax.Array:
        """Apply the experts, [B, L, D]; `routing` collects the router's probabilities [B, L, E] before the selection."""
        spec = self.spec
        probs_BLE = jax.nn.softmax(self.router(x_BLD).astype(jnp.float32), axis=-1)
        if routing is not None:
            routing.append(probs_BLE)
        top_BLK, chosen_BLK = jax.lax.top_k(probs_BLE, spec.experts_per_token)
        if spec.normalize_experts:
            top_BLK /= top_BLK.sum(-1, keepdims=True)
        kernels = [matrices.kernel[...].astype(x_BLD.dtype) for matrices in self._matrices()]
        y_BLD = self._on_mesh(x_BLD, top_BLK.astype(x_BLD.dtype), chosen_BLK, kernels, dropout_key)
        if spec.shared_expert_size:
            y_BLD += jax.nn.sigmoid(self.shared_gate(x_BLD)) * self.shared(x_BLD)
        return y_BLD

    def _matrices(self) -> list[ExpertMatrices]:
        gate = [self.expert_gate] if self.spec.gated else []
        return [self.expert_up, self.expert_down, *gate]

    def _on_mesh(
        self,
        x_BLD: jax.Array,
        top_BLK: jax.Array,
        chosen_BLK: jax.Array,
        kernels: list[jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """Run `_compute`, on a mesh of several devices inside `jax.shard_map`."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or mesh.manual_axes:
            return self._compute(x_BLD, top_BLK, chosen_BLK, kernels, key)

        if x_BLD.shape[0] % batch_shards(mesh.shape):  # as in generation
            return self._compute_all(x_BLD, top_BLK, chosen_BLK, kernels, key)

        def on_device(rows: list[jax.Array], kernels: list[jax.Array], key: jax.Array | None) -> jax.Array:
            x_BLD, top_BLK, chosen_BLK = (jax.lax.all_gather(part, "expert", axis=0, tiled=True) for part in rows)
            first = jax.lax.axis_index("expert") * len(kernels[0])
            y_BLD = jax.lax.psum(self._compute(x_BLD, top_BLK, chosen_BLK, kernels, key, first), "tensor")
            return jax.lax.psum_scatter(y_BLD, "expert", scatter_dimension=0, tiled=True)

        length = "length" if length_parts(x_BLD.shape[1]) > 1 else None
        of_rows = partition_spec(("batch", length, None))
        up, down = partition_spec(("expert", None, "mlp")), partition_spec(("expert", "mlp", None))
        specs = ([of_rows] * 3, [up, down, up][: len(kernels)], PartitionSpec())
        run = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=of_rows, check_vma=False)
        return run([x_BLD, top_BLK, chosen_BLK], kernels, key)

    def _compute(
        self,
        x_BLD: jax.Array,
        top_BLK: jax.Array,
        chosen_BLK: jax.Array,
        kernels: list[jax.Array],
        key: jax.Array | None,
        first: jax.Array | int = 0,
    ) -> jax.Array:
        """The sum of the chosen experts' outputs, weighted by `top_BLK`, over the experts of `kernels`, which start at `first`."""
        up, down, *gate = kernels
        count, shape, name = len(up), x_BLD.shape, self.arch.activation
        chosen_BLK -= first  # those outside of 0 to count - 1 are computed elsewhere
        if platform() == "cpu":
            return self._compute_all(x_BLD, top_BLK, chosen_BLK, kernels, key)
        x_RD, chosen_S = x_BLD.reshape(-1, shape[-1]), chosen_BLK.reshape(-1)
        own_S = (chosen_S >= 0) & (chosen_S < count)
        chosen_S = jnp.where(own_S, chosen_S, count)  # rows of other experts come last, in no group
        order_S = jnp.argsort(chosen_S, stable=True)
        sizes_E = jnp.bincount(chosen_S, length=count).astype(jnp.int32)
        rows_SD = x_RD[order_S // self.spec.experts_per_token]
        inner_SF = activation(name, named(jax.lax.ragged_dot(rows_SD, gate[0] if gate else up, sizes_E), "mlp"))
        if gate:
            inner_SF *= named(jax.lax.ragged_dot(rows_SD, up, sizes_E), "mlp")
        inner_SF = dropout(inner_SF, self.arch.activation_dropout_rate, key)
        out_SD = jax.lax.ragged_dot(inner_SF, down, sizes_E)
        out_SD = jnp.where(own_S[order_S][:, None], out_SD, 0) * top_BLK.reshape(-1)[order_S][:, None]
        place_S = jnp.argsort(order_S)  # the inverse permutation: a gather instead of a scatter
        return out_SD[place_S].reshape(*shape[:2], -1, shape[-1]).sum(2)

    def _compute_all(
        self,
        x_BLD: jax.Array,
        top_BLK: jax.Array,
        chosen_BLK: jax.Array,
        kernels: list[jax.Array],
        key: jax.Array | None,
    ) -> jax.Array:
        """`_compute` where all experts compute all positions, with weight 0 for unused ones: XLA has no grouped product on CPUs."""
        up, down, *gate = kernels
        weights_BLE = (jax.nn.one_hot(chosen_BLK, len(up), dtype=x_BLD.dtype) * top_BLK[..., None]).sum(-2)
        projected = [jnp.einsum("BLD,EDF->BLEF", x_BLD, matrix) for matrix in (*gate, up)]
        inner_BLEF = activation(self.arch.activation, projected[0])
        inner_BLEF = inner_BLEF * projected[1] if gate else inner_BLEF
        inner_BLEF = dropout(inner_BLEF, self.arch.activation_dropout_rate, key)
        return jnp.einsum("BLEF,EFD->BLD", inner_BLEF * weights_BLE[..., None], down)

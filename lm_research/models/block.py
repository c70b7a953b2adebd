"""A block: self-attention, cross-attention in decoders with an encoder, and a feed-forward layer, each with norms and a residual sum.

Legend: lm_research/models/__init__.py; here E is experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.activations import activation
from lm_research.models.architecture import Architecture
from lm_research.models.attention.block_sums import BlockSums
from lm_research.models.attention.cache import LayerCache
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.module import Attention, Distances, GlobalTokens, Memory
from lm_research.models.feed_forward import Experts, FeedForward
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Norm, dropout, make_param, named, norm, split_key, zeros_param
from lm_research.models.rotary import Rotation
from lm_research.parallel.rules import constrain

Branch = Callable[[jax.Array], jax.Array]


class BlockInputs(NamedTuple):
    """Inputs that all blocks of a stack share.

    Attributes:
      masks: mask of each kind of layer.
      positions_BL: rotary positions; None counts from 0.
      memory_BSD, memory_mask: the encoder's states, and their mask.
      distances: of each kind of layer with "disentangled" positions.
      input_BLD, segments_BL: the stack's input and its segments, for convolutions and attention to "blocks".
      buckets: for kinds of layers with their own table of relative positions and a cache, its row for each distance [B, L, S].
      global_tokens: the positions with global attention.
      block_sums: the blocks of each kind of layer that attends to their sums.
      rotations: of kinds of layers whose kernels rotate queries and keys.
      load_weights_BL: weights of positions in the router loads of layers with experts; None collects none.
      length: number of positions in use, for kinds of layers whose rotations depend on it.
    """

    masks: Mapping[LayerSpec, jax.Array | AttentionMask]
    positions_BL: jax.Array | None
    memory_BSD: jax.Array | None = None
    memory_mask: jax.Array | AttentionMask | None = None
    distances: Mapping[LayerSpec, Distances] | None = None
    input_BLD: jax.Array | None = None
    segments_BL: jax.Array | None = None
    buckets: Mapping[LayerSpec, jax.Array] = MappingProxyType({})
    global_tokens: GlobalTokens | None = None
    block_sums: Mapping[LayerSpec, BlockSums | None] = MappingProxyType({})
    length: jax.Array | None = None
    rotations: Mapping[LayerSpec, Rotation | None] = MappingProxyType({})
    load_weights_BL: jax.Array | None = None


@dataclasses.dataclass
class BlockCapture:
    """Probabilities captured from blocks: of self- and cross-attention [B, H, L, S], and of the router [B, L, E]."""

    attention: list[jax.Array] = dataclasses.field(default_factory=list)
    cross_attention: list[jax.Array] = dataclasses.field(default_factory=list)
    routing: list[jax.Array] = dataclasses.field(default_factory=list)

    def split(self, sources: int) -> None:
        """Move the probabilities of the last `sources` keys of merged attention to `cross_attention`."""
        probs_BHLS = self.attention.pop()
        self.attention.append(probs_BHLS[..., :-sources])
        self.cross_attention.append(probs_BHLS[..., -sources:])


class Convolution(nnx.Module):
    """A convolution over positions, which stays inside each segment and is 0 at padding.

    Its filters are [outputs, inputs / groups, width].
    """

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width = arch.hidden_size
        self.filters = make_param(
            rngs, (width, width // spec.conv_groups, spec.conv_width), ("embed", None, None), arch
        )
        self.bias = zeros_param((width,), (None,))
        self.spec = spec

    def __call__(self, x_BLD: jax.Array, segments_BL: jax.Array) -> jax.Array:
        """Convolve, [B, L, D]."""
        width, groups, length = self.spec.conv_width, self.spec.conv_groups, x_BLD.shape[1]
        real_BL1 = segments_BL[..., None] > 0
        pad, filters = ((0, 0), (width // 2, width // 2)), self.filters[...].astype(x_BLD.dtype)
        padded, segments = jnp.pad(x_BLD, (*pad, (0, 0))), jnp.pad(segments_BL, pad)
        result_BLD = jnp.broadcast_to(self.bias[...].astype(x_BLD.dtype), x_BLD.shape)
        for offset in range(width):
            near_BL1 = segments[:, offset : offset + length, None] == segments_BL[..., None]
            near_BLGI = jnp.where(near_BL1, padded[:, offset : offset + length], 0).reshape(
                *x_BLD.shape[:2], groups, -1
            )
            filter_GOI = filters[..., offset].reshape(groups, -1, filters.shape[1])
            result_BLD += jnp.einsum("BLGI,GOI->BLGO", near_BLGI, filter_GOI).reshape(x_BLD.shape)
        return jnp.where(real_BL1, result_BLD, 0)


class DepthWeights(nnx.Module):
    """The weights of `arch.depth_weights` after each branch: row n has n + 2, of which the last, the state's own, starts at 1."""

    def __init__(self, branches: int) -> None:
        for row in range(branches):
            setattr(self, f"row_{row}", nnx.Param(jnp.zeros(row + 2).at[-1].set(1.0), axes=(None,)))


class DepthAverage:
    """The weighted sums of a stack's states up to each branch, for `arch.depth_weights`.

    Attributes:
      states: the embeddings, and the state after each branch before it was averaged.
      rows: weights of the states for each of the next branches.
    """

    def __init__(self, states: Sequence[jax.Array], rows: Sequence[jax.Array]) -> None:
        self.states, self.rows = list(states), iter(rows)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Add a state, and return the sum."""
        self.states.append(x_BLD)
        weights = next(self.rows).astype(x_BLD.dtype)
        first, *others = (weights[number] * state for number, state in enumerate(self.states))
        return sum(others, first)


class Block(nnx.Module):
    """One layer of a stack, as described by a LayerSpec whose sizes are filled in."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        has_output_norms = spec.residual == "sandwich"
        if spec.attention != "none":
            self.attention = Attention(arch, spec, rngs)
            self.attention_norm = norm(arch) if spec.attention_norm else None
            self.attention_output_norm = norm(arch) if has_output_norms else None
        if arch.has_cross_attention:
            self.cross_attention = Attention(arch, spec, rngs, cross=True)
            self.cross_attention_norm = norm(arch)
            self.cross_attention_output_norm = norm(arch) if has_output_norms else None
        self.feed_forward = (Experts if spec.num_experts else FeedForward)(arch, spec, rngs)
        self.feed_forward_norm = None if spec.shared_norm else norm(arch)
        self.feed_forward_output_norm = norm(arch) if has_output_norms else None
        if spec.conv_width:
            self.convolution = Convolution(arch, spec, rngs)
            self.convolution_norm = norm(arch)
        self.arch, self.spec = arch, spec

    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: BlockInputs,
        key: jax.Array | None = None,
        layer: jax.Array | int = 0,
        capture: BlockCapture | None = None,
        cache: LayerCache | None = None,
        cross_cache: LayerCache | None = None,
        average: DepthAverage | None = None,
    ) -> jax.Array:
        """Run the layer, [B, L, D].

        Args:
          x_BLD: the layer's input.
          inputs: inputs that all layers share.
          key: PRNG key for dropout; None disables it.
          layer: the layer's index from 0.
          capture: collects the probabilities of attentions and router.
          cache: the layer's keys and values of earlier positions.
          cross_cache: the layer's keys and values of the encoder's states.
          average: replaces the state after each branch, for `arch.depth_weights`.
        """
        spec, has_cross_attention = self.spec, self.arch.has_cross_attention
        has_inner_dropout = self.arch.activation_dropout_rate > 0
        keys = iter(split_key(key, 3 + 2 * has_cross_attention + has_inner_dropout + bool(spec.conv_width)))

        def self_attention(x_BLD: jax.Array) -> jax.Array:
            options: dict[str, Any] = dict(positions_BL=inputs.positions_BL, layer=layer, dropout_key=next(keys))
            options |= dict(buckets_BLS=inputs.buckets.get(spec), global_tokens=inputs.global_tokens)
            options |= dict(length=inputs.length, segments_BL=inputs.segments_BL)
            options |= dict(block_sums=inputs.block_sums.get(spec), rotation=inputs.rotations.get(spec))
            probs = None if capture is None else capture.attention
            if self.arch.merged_attention:
                assert isinstance(inputs.memory_mask, jax.Array)
                memory = Memory(inputs.memory_mask, inputs.memory_BSD, cross_cache)
                y_BLD = self.attention(x_BLD, inputs.masks[spec], cache, **options, probs=probs, merged=memory)
                if capture is not None:
                    capture.split(memory.length)
                return y_BLD
            distances = inputs.distances[spec] if inputs.distances is not None and spec.position_terms else None
            return self.attention(x_BLD, inputs.masks[spec], cache, **options, probs=probs, distances=distances)

        def cross_attention(x_BLD: jax.Array) -> jax.Array:
            assert inputs.memory_mask is not None
            options: dict[str, Any] = dict(memory_BSD=inputs.memory_BSD, layer=layer, dropout_key=next(keys))
            probs = None if capture is None else capture.cross_attention
            return self.cross_attention(x_BLD, inputs.memory_mask, cross_cache, **options, probs=probs)

        def feed_forward(x_BLD: jax.Array) -> jax.Array:
            key = next(keys) if has_inner_dropout else None
            if isinstance(self.feed_forward, Experts):
                return self.feed_forward(x_BLD, key, None if capture is None else capture.routing)
            return self.feed_forward(x_BLD, key)

        if spec.residual == "parallel":
            return self._parallel(x_BLD, self_attention, feed_forward, keys)
        if spec.attention != "none":
            x_BLD = self._residual(x_BLD, self_attention, self.attention_norm, self.attention_output_norm, keys)
            x_BLD = x_BLD if average is None else average(x_BLD)
        if has_cross_attention:
            norms = self.cross_attention_norm, self.cross_attention_output_norm
            x_BLD = self._residual(x_BLD, cross_attention, *norms, keys)
        x_BLD = self._residual(x_BLD, feed_forward, self.feed_forward_norm, self.feed_forward_output_norm, keys)
        x_BLD = x_BLD if average is None else average(x_BLD)
        if not spec.conv_width:
            return x_BLD
        assert inputs.input_BLD is not None and inputs.segments_BL is not None
        mixed_BLD = dropout(self.convolution(inputs.input_BLD, inputs.segments_BL), self.arch.dropout_rate, next(keys))
        x_BLD = self.convolution_norm(x_BLD + activation(spec.conv_activation, mixed_BLD))
        return jnp.where(inputs.segments_BL[..., None] > 0, x_BLD, 0)

    def memory_keys_and_values(self, memory_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, G, K] of the encoder's states."""
        attention = self.attention if self.arch.merged_attention else self.cross_attention
        return attention.keys_and_values(memory_BSD)

    def _residual(
        self,
        x_BLD: jax.Array,
        branch: Branch,
        norm: Norm | None,
        output_norm: Norm | None,
        keys: Iterator[jax.Array | None],
    ) -> jax.Array:
        """Add a branch to x, with norms placed as `spec.residual` defines."""
        residual = self.spec.residual
        if residual == "normed" and norm is not None:
            x_BLD = norm(x_BLD)
        y_BLD = branch(norm(x_BLD) if norm is not None and residual in ("pre", "sandwich") else x_BLD)
        branch_norm = norm if residual == "output" else output_norm
        if branch_norm is not None:
            y_BLD = branch_norm(y_BLD)
        x_BLD = named(x_BLD + self._scaled(dropout(y_BLD, self.arch.dropout_rate, next(keys))), "residual")
        if residual == "post" and norm is not None:
            x_BLD = norm(x_BLD)
        return constrain(x_BLD, "batch", "length", None)

    def _parallel(
        self, x_BLD: jax.Array, attention: Branch, feed_forward: Branch, keys: Iterator[jax.Array | None]
    ) -> jax.Array:
        """Add both branches, each computed from x, to x."""
        rate = self.arch.dropout_rate
        first_BLD = x_BLD if self.attention_norm is None else self.attention_norm(x_BLD)
        second_BLD = first_BLD if self.feed_forward_norm is None else self.feed_forward_norm(x_BLD)
        y_BLD = dropout(attention(first_BLD), rate, next(keys))
        y_BLD += dropout(feed_forward(second_BLD), rate, next(keys))
        return constrain(x_BLD + self._scaled(y_BLD), "batch", "length", None)

    def _scaled(self, y_BLD: jax.Array) -> jax.Array:
        scale = self.spec.residual_scale
        return y_BLD if scale == 1.0 else y_BLD * scale


@functools.lru_cache(maxsize=256)
def block_parts(arch: Architecture, spec: LayerSpec) -> tuple[Any, nnx.State[Any, Any]]:
    """Graph definition and abstract state of a Block, for nnx.merge with parameters."""
    return nnx.split(nnx.eval_shape(lambda: Block(arch, spec, nnx.Rngs(0))))

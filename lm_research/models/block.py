"""A block: self-attention, cross-attention in decoders with an encoder, and a feed-forward layer, each with norms and a residual sum.

Legend: lm_research/models/__init__.py; here E is experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention.cache import LayerCache
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.module import Attention, Memory
from lm_research.models.feed_forward import Experts, FeedForward
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Norm, dropout, norm, split_key
from lm_research.parallel.rules import constrain

Branch = Callable[[jax.Array], jax.Array]


class BlockInputs(NamedTuple):
    """Inputs that all blocks of a stack share: masks by kind of layer, positions, the encoder's states."""

    masks: Mapping[LayerSpec, jax.Array | AttentionMask]
    positions_BL: jax.Array | None
    memory_BSD: jax.Array | None = None
    memory_mask: jax.Array | AttentionMask | None = None


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
        """
        spec, has_cross_attention = self.spec, self.arch.has_cross_attention
        has_inner_dropout = self.arch.activation_dropout_rate > 0
        keys = iter(split_key(key, 3 + 2 * has_cross_attention + has_inner_dropout))

        def self_attention(x_BLD: jax.Array) -> jax.Array:
            options: dict[str, Any] = dict(positions_BL=inputs.positions_BL, layer=layer, dropout_key=next(keys))
            probs = None if capture is None else capture.attention
            if self.arch.merged_attention:
                assert isinstance(inputs.memory_mask, jax.Array)
                memory = Memory(inputs.memory_mask, inputs.memory_BSD, cross_cache)
                y_BLD = self.attention(x_BLD, inputs.masks[spec], cache, **options, probs=probs, merged=memory)
                if capture is not None:
                    capture.split(memory.length)
                return y_BLD
            return self.attention(x_BLD, inputs.masks[spec], cache, **options, probs=probs)

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
        if has_cross_attention:
            norms = self.cross_attention_norm, self.cross_attention_output_norm
            x_BLD = self._residual(x_BLD, cross_attention, *norms, keys)
        return self._residual(x_BLD, feed_forward, self.feed_forward_norm, self.feed_forward_output_norm, keys)

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
        x_BLD = x_BLD + self._scaled(dropout(y_BLD, self.arch.dropout_rate, next(keys)))
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

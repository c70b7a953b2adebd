"""A block: attention, attention to an encoder if there is one, and a feed-forward layer, each with its norms and a residual sum.

Legend: B batch, L length, S length of the encoder's rows, D model width, H heads, E experts.
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
from lm_research.models.attention.module import Attention
from lm_research.models.feed_forward import Experts, FeedForward
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Norm, dropout, norm, split_key
from lm_research.parallel.rules import constrain

Branch = Callable[[jax.Array], jax.Array]


class BlockInputs(NamedTuple):
    """What the blocks of a stack share: masks by kind of layer, positions, the encoder's states."""

    masks: Mapping[LayerSpec, jax.Array | AttentionMask]
    positions_BL: jax.Array | None
    memory_BSD: jax.Array | None = None
    memory_mask: jax.Array | AttentionMask | None = None


@dataclasses.dataclass
class BlockCapture:
    """What a block is asked to show: probabilities of its attentions [B, H, L, S], and of its router [B, L, E]."""

    attention: list[jax.Array] = dataclasses.field(default_factory=list)
    cross_attention: list[jax.Array] = dataclasses.field(default_factory=list)
    routing: list[jax.Array] = dataclasses.field(default_factory=list)


class Block(nnx.Module):
    """One layer of a stack, of the kind that a LayerSpec with its sizes describes."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        behind = spec.residual == "sandwich"
        if spec.attention != "none":
            self.attention = Attention(arch, spec, rngs)
            self.attention_norm = norm(arch) if spec.attention_norm else None
            self.attention_output_norm = norm(arch) if behind else None
        if arch.encoder is not None:
            self.cross_attention = Attention(arch, spec, rngs, cross=True)
            self.cross_attention_norm = norm(arch)
            self.cross_attention_output_norm = norm(arch) if behind else None
        self.feed_forward = (Experts if spec.num_experts else FeedForward)(arch, spec, rngs)
        self.feed_forward_norm = None if spec.shared_norm else norm(arch)
        self.feed_forward_output_norm = norm(arch) if behind else None
        self.arch, self.spec = arch, spec

    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: BlockInputs,
        key: jax.Array | None = None,
        layer: jax.Array | int = 0,
        seen: BlockCapture | None = None,
        cache: LayerCache | None = None,
        cross_cache: LayerCache | None = None,
    ) -> jax.Array:
        """[B, L, D].

        Args:
          x_BLD: the layer's input.
          inputs: what all layers share.
          key: of dropout; None applies none.
          layer: the layer's number from 0.
          seen: collects what attentions and router saw.
          cache, cross_cache: keys and values of earlier positions, and of the encoder's states, of this layer.
        """
        spec, crosses = self.spec, self.arch.encoder is not None
        inner = self.arch.activation_dropout_rate > 0
        keys = iter(split_key(key, 3 + 2 * crosses + inner))

        def attend(x_BLD: jax.Array) -> jax.Array:
            own, probs = inputs.positions_BL, None if seen is None else seen.attention
            return self.attention(
                x_BLD, inputs.masks[spec], cache, positions_BL=own, layer=layer, dropout_key=next(keys), probs=probs
            )

        def attend_to_encoder(x_BLD: jax.Array) -> jax.Array:
            own, mask, probs = inputs.memory_BSD, inputs.memory_mask, None if seen is None else seen.cross_attention
            assert mask is not None
            return self.cross_attention(
                x_BLD, mask, cross_cache, memory_BSD=own, layer=layer, dropout_key=next(keys), probs=probs
            )

        def feed(x_BLD: jax.Array) -> jax.Array:
            key = next(keys) if inner else None
            if isinstance(self.feed_forward, Experts):
                return self.feed_forward(x_BLD, key, None if seen is None else seen.routing)
            return self.feed_forward(x_BLD, key)

        if spec.residual == "parallel":
            return self._parallel(x_BLD, attend, feed, keys)
        if spec.attention != "none":
            x_BLD = self._residual(x_BLD, attend, self.attention_norm, self.attention_output_norm, keys)
        if crosses:
            norms = self.cross_attention_norm, self.cross_attention_output_norm
            x_BLD = self._residual(x_BLD, attend_to_encoder, *norms, keys)
        return self._residual(x_BLD, feed, self.feed_forward_norm, self.feed_forward_output_norm, keys)

    def _residual(
        self,
        x_BLD: jax.Array,
        branch: Branch,
        norm: Norm | None,
        output_norm: Norm | None,
        keys: Iterator[jax.Array | None],
    ) -> jax.Array:
        """The sum of x and a branch, with norms where `spec.residual` has them."""
        where = self.spec.residual
        y_BLD = branch(norm(x_BLD) if norm is not None and where not in ("post", "output") else x_BLD)
        behind = norm if where == "output" else output_norm
        if behind is not None:
            y_BLD = behind(y_BLD)
        x_BLD = x_BLD + self._scaled(dropout(y_BLD, self.arch.dropout_rate, next(keys)))
        if where == "post" and norm is not None:
            x_BLD = norm(x_BLD)
        return constrain(x_BLD, "batch", "length", None)

    def _parallel(self, x_BLD: jax.Array, attend: Branch, feed: Branch, keys: Iterator[jax.Array | None]) -> jax.Array:
        """The sum of x and both branches, each of x itself."""
        rate, own = self.arch.dropout_rate, self.feed_forward_norm
        first_BLD = x_BLD if self.attention_norm is None else self.attention_norm(x_BLD)
        second_BLD = first_BLD if own is None else own(x_BLD)
        y_BLD = dropout(attend(first_BLD), rate, next(keys))
        y_BLD += dropout(feed(second_BLD), rate, next(keys))
        return constrain(x_BLD + self._scaled(y_BLD), "batch", "length", None)

    def _scaled(self, y_BLD: jax.Array) -> jax.Array:
        scale = self.spec.residual_scale
        return y_BLD if scale == 1.0 else y_BLD * scale


@functools.lru_cache(maxsize=256)
def block_parts(arch: Architecture, spec: LayerSpec) -> tuple[Any, nnx.State[Any, Any]]:
    """Graph and shapes of a Block: what puts its parameters into it."""
    return nnx.split(nnx.eval_shape(lambda: Block(arch, spec, nnx.Rngs(0))))

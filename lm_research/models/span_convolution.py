"""Convolutions over positions whose filters depend on the text around them (Jiang et al. 2020, arXiv:2008.02496, section 4.2).

Legend: lm_research/models/__init__.py; here W is the width of the filters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense, make_param, zeros_param


class Filters(nnx.Module):
    """A stack of filters [outputs, inputs / groups, width], and an optional offset [outputs, 1]."""

    def __init__(self, shape: tuple[int, int, int], arch: Architecture, rngs: nnx.Rngs, offset: bool = False) -> None:
        self.filters = make_param(rngs, shape, ("embed", None, None), arch)
        self.offset = zeros_param((shape[0], 1), (None, None)) if offset else None


class SpanConvolution(nnx.Module):
    """Heads that mix the W nearest values with weights from a position's query and a key of its span.

    The span's key is a separable convolution of the states: one filter per channel, then a product over channels.
    """

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs) -> None:
        width, span = arch.hidden_size, spec.span_conv_width
        heads, inner = spec.num_heads, spec.num_heads * spec.head_size
        self.depthwise = Filters((width, 1, span), arch, rngs)
        self.pointwise = Filters((inner, width, 1), arch, rngs, offset=True)
        self.weights = Dense([(inner, None)], [(heads, "heads"), (span, None)], arch, rngs)
        self.value = Dense([(width, "embed")], [(heads, "heads"), (spec.head_size, None)], arch, rngs)
        self.spec = spec

    def __call__(self, x_BLD: jax.Array, query_BLHK: jax.Array, segments_BL: jax.Array) -> jax.Array:
        """Mix values, [B, L, H, K]. Packed documents do not mix; padding mixes with the text next to it, as in the released code."""
        depth_WD = self.depthwise.filters[...][:, 0].T.astype(x_BLD.dtype)
        span_BLD = (self._near(x_BLD, segments_BL) * depth_WD[:, None, None]).sum(0)
        point_ID = self.pointwise.filters[...][..., 0].astype(x_BLD.dtype)
        assert self.pointwise.offset is not None
        key_BLI = span_BLD @ point_ID.T + self.pointwise.offset[...][:, 0].astype(x_BLD.dtype)
        scores_BLHW = self.weights(key_BLI * query_BLHK.reshape(key_BLI.shape))
        weights_BLHW = jax.nn.softmax(scores_BLHW.astype(jnp.float32), axis=-1).astype(x_BLD.dtype)
        value_BLHK = self.value(x_BLD)
        near_WBLI = self._near(value_BLHK.reshape(key_BLI.shape), segments_BL)
        return jnp.einsum("WBLHK,BLHW->BLHK", near_WBLI.reshape(-1, *value_BLHK.shape), weights_BLHW)

    def _near(self, x_BLD: jax.Array, segments_BL: jax.Array) -> jax.Array:
        """The W nearest states of each position, [W, B, L, D]; 0 outside of the row and in other documents."""
        span, length = self.spec.span_conv_width, x_BLD.shape[1]
        pad = ((0, 0), (span // 2, span // 2))
        padded, segments = jnp.pad(x_BLD, (*pad, (0, 0))), jnp.pad(segments_BL, pad)
        near = []
        for offset in range(span):
            other_BL = segments[:, offset : offset + length]
            mixes_BL = (other_BL == segments_BL) | (other_BL == 0) | (segments_BL == 0)
            near.append(jnp.where(mixes_BL[..., None], padded[:, offset : offset + length], 0))
        return jnp.stack(near)

"""Scaled dot-product attention (Vaswani et al. 2017) over padded or packed rows.

Legend: B batch, L query length, S key length, H query heads, G key/value heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention.cache import LayerCache
from lm_research.models.attention.flash import flash_attend
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.ring import ring_attend
from lm_research.models.attention.splash import fits, splash_attend
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense, Norm, capped, dropout, norm
from lm_research.models.positions import rotary_frequencies, rotate
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, length_parts

# Rows from which GPUs' kernels are the faster ones, and the widest heads that their registers hold (experiments/benchmarks/attention).
FLASH_LENGTH, WIDEST_HEAD = 128, 128
# Rows from which TPUs' kernels are used; not measured by us.
SPLASH_LENGTH = 512


def use_fused_kernel(
    arch: Architecture, spec: LayerSpec, lengths: Sequence[int], drops: bool, prefixes: bool, where: str = ""
) -> bool:
    """Whether attention over rows of these lengths is made by kernels that keep no scores: flash's on GPUs, splash's on TPUs.

    Args:
      arch: of the stack.
      spec: of the layer.
      lengths: of the rows of queries and keys.
      drops: whether probabilities are dropped.
      prefixes: whether there are prefixes.
      where: the platform; `platform()` if empty.
    """
    if spec.positions in ("relative", "alibi"):
        return False
    where, shortest = where or platform(), min(lengths)
    if where == "tpu":
        able = all(map(fits, lengths)) and not (drops or prefixes)
        return able and (
            arch.attention_backend == "flash" or arch.attention_backend == "auto" and shortest >= SPLASH_LENGTH
        )
    if spec.score_cap:
        return False
    if arch.attention_backend == "auto":
        fast = where == "gpu" and shortest >= FLASH_LENGTH and arch.compute_dtype.itemsize == 2
        return fast and spec.head_size <= WIDEST_HEAD
    return arch.attention_backend == "flash"


def dot_product_attention(
    query_BLHK: jax.Array,
    key_BGSK: jax.Array,
    value_BGSK: jax.Array,
    bias_BHLS: jax.Array,
    scale: float | jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    probs: list[jax.Array] | None = None,
    score_cap: float = 0.0,
) -> jax.Array:
    """softmax(scale q k^T + bias) v, softmax in float32: [B, L, H, K] in the type of the values.

    Heads of keys come before their positions, as the products read them: over contiguous [S, K] matrices they are 10 to 25%
    faster on a CPU. H / G query heads share a key's head without copies of it; keys and values may have rows and heads as
    one axis, [B x G, S, K]. Others as in `attend`; `probs` collects the probabilities [B, H, L, S] before dropout, and before the
    bias is added scores become cap tanh(score / cap), unless the cap is 0.
    """
    batch, length, heads, width = query_BLHK.shape
    front, slots = key_BGSK.shape[:-2], key_BGSK.shape[-2]
    groups = front[0] // batch if len(front) == 1 else front[1]
    query = (query_BLHK.swapaxes(1, 2) * scale).reshape(*front, heads // groups * length, width)
    scores = jnp.einsum("...QK,...SK->...QS", query, key_BGSK, preferred_element_type=jnp.float32)
    scores_BHLS = capped(scores.reshape(batch, heads, length, slots), score_cap) + bias_BHLS
    probs_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    if probs is not None:
        probs.append(probs_BHLS)
    probs_BHLS = dropout(probs_BHLS.astype(value_BGSK.dtype), dropout_rate, dropout_key)
    mixed = jnp.einsum("...QS,...SK->...QK", probs_BHLS.reshape(scores.shape), value_BGSK)
    return mixed.reshape(batch, heads, length, -1).swapaxes(1, 2)


def fused_attention(
    query_BLHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    bias_BHLS: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score_cap: float = 0.0,
) -> jax.Array:
    """The reference implementation: softmax(q k^T / sqrt(K) + bias) v, [B, L, H, K].

    Args:
      query_BLHK, key_BSGK, value_BSGK: projections, any floating type.
      bias_BHLS: what is added to the scores (mask, relative positions), float32; may have 1 for B and for H.
      dropout_rate, dropout_key: dropout on the probabilities; a None key applies none.
      scale: factor on the scores, instead of 1 / sqrt(K).
      score_cap: scores become cap tanh(score / cap) before the bias is added; 0 leaves them.
    """
    scale = query_BLHK.shape[-1] ** -0.5 if scale is None else scale
    pair, dropped = (key_BSGK.swapaxes(1, 2), value_BSGK.swapaxes(1, 2)), (dropout_rate, dropout_key)
    return dot_product_attention(query_BLHK, *pair, bias_BHLS, scale, *dropped, None, score_cap)


def blockwise_attention(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    mask: AttentionMask,
    scale: float | jax.Array,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    score_cap: float = 0.0,
) -> jax.Array:
    """`attend` a block of scores at a time, [B, L, H, K]: in rings where devices divide the positions, else in the platform's kernels."""
    if length_parts(query_BLHK.shape[1]) > 1:
        return ring_attend(query_BLHK * scale, key_BSHK, value_BSHK, mask, dropout_rate, dropout_key, score_cap)
    if platform() == "tpu":
        return splash_attend(query_BLHK, key_BSHK, value_BSHK, mask, scale, score_cap)
    return flash_attend(query_BLHK, key_BSHK, value_BSHK, mask, scale, dropout_rate, dropout_key)


class Attention(nnx.Module):
    """Multi-head attention of a stack to itself, or to the stack that `arch.encoder` describes (`cross`)."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs, cross: bool = False) -> None:
        spec = spec.across if cross else spec
        width = [(arch.hidden_size, "embed")]
        memory = [(arch.memory_width, "embed")] if cross else width
        heads = [(spec.num_heads, "heads"), (spec.head_size, None)]
        kv_heads = [(spec.num_kv_heads, "heads"), (spec.head_size, None)]
        self.query = Dense(width, heads, arch, rngs, bias=spec.query_bias)
        self.key = Dense(memory, kv_heads, arch, rngs, bias=spec.key_bias)
        self.value = Dense(memory, kv_heads, arch, rngs, bias=spec.value_bias)
        self.output = Dense(heads, width, arch, rngs, std=arch.residual_init_std or None, bias=spec.output_bias)
        if spec.query_key_norm != "none":
            whole = spec.query_key_norm == "projection"
            self.query_norm = norm(arch, spec.head_size * (spec.num_heads if whole else 1))
            self.key_norm = norm(arch, spec.head_size * (spec.num_kv_heads if whole else 1))
        self.arch, self.spec = arch, spec

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: jax.Array | AttentionMask,
        cache: LayerCache | None = None,
        *,
        memory_BSD: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        layer: jax.Array | int = 0,
        dropout_key: jax.Array | None = None,
        probs: list[jax.Array] | None = None,
    ) -> jax.Array:
        """[B, L, D].

        Args:
          x_BLD: where the queries come from.
          mask: added to the scores [B, H, L, S]; may have 1 for B and for H. An AttentionMask where they are made a block at a
            time: in rings, where devices divide the positions, or else in kernels.
          cache: where keys and values of earlier positions are, and those of x go; or all of them, of an encoder's states.
          memory_BSD: where keys and values come from without a cache; None is x.
          positions_BL: rotary positions; None counts along the row.
          layer: number of the block from 0, for architectures that scale by it.
          dropout_key: None applies no dropout.
          probs: a list that the probabilities [B, H, L, S] are appended to.
        """
        spec = self.spec
        if spec.positions == "rotary" and positions_BL is None:
            positions_BL = jnp.arange(x_BLD.shape[1])[None]
        query_BLHK = self._project(self.query, x_BLD)
        if spec.query_key_norm != "none":
            query_BLHK = self._normalized(self.query_norm, query_BLHK)
        query_BLHK = self._rotated(query_BLHK, positions_BL)
        scale = spec.attention_scale or spec.head_size**-0.5
        if spec.scale_by_layer:
            scale = scale / (layer + 1)
        dropped = (self.arch.attention_dropout_rate, dropout_key)
        if cache is None or cache.slots is not None:
            key, value = self.keys_and_values(x_BLD if memory_BSD is None else memory_BSD, positions_BL)
            if isinstance(mask, AttentionMask):
                copies = spec.num_heads // spec.num_kv_heads
                if copies > 1:
                    key, value = jnp.repeat(key, copies, axis=2), jnp.repeat(value, copies, axis=2)
                return self.output(blockwise_attention(query_BLHK, key, value, mask, scale, *dropped, spec.score_cap))
            key, value = (key.swapaxes(1, 2), value.swapaxes(1, 2)) if cache is None else cache.update(key, value)
        else:
            key, value = cache.key, cache.value
        assert not isinstance(mask, AttentionMask)
        return self.output(dot_product_attention(query_BLHK, key, value, mask, scale, *dropped, probs, spec.score_cap))

    def keys_and_values(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, G, K], normalized and rotated where the layer does that."""
        key_BSGK, value_BSGK = self._project(self.key, x_BSD), self._project(self.value, x_BSD)
        if self.spec.query_key_norm != "none":
            key_BSGK = self._normalized(self.key_norm, key_BSGK)
        return self._rotated(key_BSGK, positions_BS), value_BSGK

    def _project(self, projection: Dense, x_BLD: jax.Array) -> jax.Array:
        return constrain(projection(x_BLD), "batch", "length", "act_heads", None)

    def _normalized(self, norm: Norm, x_BLHK: jax.Array) -> jax.Array:
        if self.spec.query_key_norm == "head":
            return norm(x_BLHK)
        return norm(x_BLHK.reshape(*x_BLHK.shape[:2], -1)).reshape(x_BLHK.shape)

    def _rotated(self, x_BLHK: jax.Array, positions_BL: jax.Array | None) -> jax.Array:
        spec = self.spec
        if spec.positions != "rotary":
            return x_BLHK
        assert positions_BL is not None
        frequency = rotary_frequencies(spec.rotary_width, spec.rotary_theta, dict(spec.rotary_scaling))
        return rotate(x_BLHK, positions_BL, frequency, spec.rotary_interleaved)

"""Scaled dot-product attention (Vaswani et al. 2017) over padded or packed rows.

Legend: B batch, L query length, S key length, H query heads, G key/value heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.flash import flash_attend
from lm_research.models.layers import Dense, dropout
from lm_research.models.masks import Sight
from lm_research.models.positions import rotary_frequencies, rotate
from lm_research.models.ring import ring_attend
from lm_research.models.splash import fits, splash_attend
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, length_parts

# Rows from which GPUs' kernels are the faster ones, and the widest heads that their registers hold (experiments/benchmarks/attention).
FLASH_LENGTH, WIDEST_HEAD = 128, 128
# Rows from which TPUs' kernels are used; not measured by us.
SPLASH_LENGTH = 512


def in_kernels(arch: Architecture, lengths: Sequence[int], drops: bool, prefixes: bool, where: str = "") -> bool:
    """Whether attention over rows of these lengths is made by kernels that keep no scores: flash's on GPUs, splash's on TPUs.

    Args:
      arch: of the stack.
      lengths: of the rows of queries and keys.
      drops: whether probabilities are dropped.
      prefixes: whether there are prefixes.
      where: the platform; `platform()` if empty.
    """
    where, shortest = where or platform(), min(lengths)
    if where == "tpu":
        able = all(map(fits, lengths)) and not (drops or prefixes or arch.window_from)
        return able and (arch.attention == "flash" or arch.attention == "auto" and shortest >= SPLASH_LENGTH)
    if arch.attention == "auto":
        fast = where == "gpu" and shortest >= FLASH_LENGTH and arch.compute_dtype.itemsize == 2
        return fast and arch.head_width <= WIDEST_HEAD
    return arch.attention == "flash"


def probabilities(
    query_BLHK: jax.Array, key_BSHK: jax.Array, bias_BHLS: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """softmax(scale q k^T + bias) in float32, [B, H, L, S]. The bias may have 1 for B and for H."""
    # Heads next to the batch first: the products then run over contiguous [L, K] matrices, 10 to 25% faster on a CPU.
    query_BHLK, key_BHSK = query_BLHK.swapaxes(1, 2), key_BSHK.swapaxes(1, 2)
    query_BHLK = query_BHLK * scale
    scores_BHLS = jnp.einsum("BHLK,BHSK->BHLS", query_BHLK, key_BHSK, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores_BHLS + bias_BHLS, axis=-1)


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    bias_BHLS: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    scale: float | jax.Array | None = None,
) -> jax.Array:
    """The reference implementation: softmax(q k^T / sqrt(K) + bias) v, softmax in float32.

    Args:
      query_BLHK, key_BSHK, value_BSHK: projections, any floating type.
      bias_BHLS: what is added to the scores (mask, relative positions), float32; may have 1 for B and for H.
      dropout_rate, dropout_key: dropout on the probabilities; a None key applies none.
      scale: factor on the scores, instead of 1 / sqrt(K).

    Returns:
      [B, L, H, K] in the type of the values.
    """
    scale = query_BLHK.shape[-1] ** -0.5 if scale is None else scale
    shares_BHLS = probabilities(query_BLHK, key_BSHK, bias_BHLS, scale).astype(value_BSHK.dtype)
    return mix(dropout(shares_BHLS, dropout_rate, dropout_key), value_BSHK)


def mix(shares_BHLS: jax.Array, value_BSHK: jax.Array) -> jax.Array:
    """Means of the values by each query's shares, [B, L, H, K]."""
    return jnp.einsum("BHLS,BHSK->BHLK", shares_BHLS, value_BSHK.swapaxes(1, 2)).swapaxes(1, 2)


def attend_in_blocks(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    sight: Sight,
    layer: jax.Array | int,
    scale: float | jax.Array,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """`attend` a block of scores at a time, [B, L, H, K]: in rings where devices divide the positions, else in the platform's kernels."""
    if length_parts(query_BLHK.shape[1]) > 1:
        return ring_attend(query_BLHK * scale, key_BSHK, value_BSHK, sight, layer, dropout_rate, dropout_key)
    if platform() == "tpu":
        return splash_attend(query_BLHK, key_BSHK, value_BSHK, sight, scale)
    return flash_attend(query_BLHK, key_BSHK, value_BSHK, sight, layer, scale, dropout_rate, dropout_key)


class Attention(nnx.Module):
    """Multi-head attention of a stack to itself, or to the stack that `arch.encoder` describes (`cross`)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, cross: bool = False) -> None:
        width = [(arch.hidden_size, "embed")]
        memory = [(arch.memory_width, "embed")] if cross else width
        heads = [(arch.num_heads, "heads"), (arch.head_width, None)]
        kv_heads = [(arch.kv_heads, "heads"), (arch.head_width, None)]
        self.query = Dense(width, heads, arch, rngs, bias=arch.qkv_bias)
        self.key = Dense(memory, kv_heads, arch, rngs, bias=arch.qkv_bias)
        self.value = Dense(memory, kv_heads, arch, rngs, bias=arch.qkv_bias)
        self.output = Dense(heads, width, arch, rngs, std=arch.residual_init_std or None, bias=arch.output_bias)
        self.arch = arch
        self.rotary = arch.positions == "rotary" and not cross

    def __call__(
        self,
        x_BLD: jax.Array,
        bias_BHLS: jax.Array | Sight,
        dropout_key: jax.Array | None = None,
        memory_BSD: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        layer: jax.Array | int = 0,
        shares: list[jax.Array] | None = None,
    ) -> jax.Array:
        """[B, L, D].

        Args:
          x_BLD: where the queries come from.
          bias_BHLS: added to the scores; may have 1 for B and for H. A Sight where they are made a block at a time: in rings, where
            devices divide the positions, or else in kernels.
          dropout_key: None applies no dropout.
          memory_BSD: where keys and values come from; None is x.
          positions_BL: rotary positions; None counts along the row.
          layer: number of the block from 0, for architectures that scale by it.
          shares: a list that the probabilities [B, H, L, S] are appended to (then nothing is dropped from them).
        """
        arch = self.arch
        source = x_BLD if memory_BSD is None else memory_BSD
        query_BLHK, key_BSGK, value_BSGK = (
            constrain(project(x), "batch", "length", "act_heads", None)
            for project, x in ((self.query, x_BLD), (self.key, source), (self.value, source))
        )
        if self.rotary:
            if positions_BL is None:
                positions_BL = jnp.arange(x_BLD.shape[1])[None]
            frequency = rotary_frequencies(arch.head_width, arch.rotary_theta, dict(arch.rotary_scaling))
            query_BLHK, key_BSGK = (rotate(x, positions_BL, frequency) for x in (query_BLHK, key_BSGK))
        if arch.kv_heads != arch.num_heads:
            copies = arch.num_heads // arch.kv_heads
            key_BSGK, value_BSGK = (jnp.repeat(x, copies, axis=2) for x in (key_BSGK, value_BSGK))
        scale = arch.attention_scale or arch.head_width**-0.5
        if arch.scale_by_layer:
            scale = scale / (layer + 1)
        rate = arch.attention_dropout_rate
        qkv = (query_BLHK, key_BSGK, value_BSGK)
        if isinstance(bias_BHLS, Sight):
            context = attend_in_blocks(*qkv, bias_BHLS, layer, scale, rate, dropout_key)
        elif shares is None:
            context = attend(*qkv, bias_BHLS, rate, dropout_key, scale)
        else:
            shares.append(probabilities(query_BLHK, key_BSGK, bias_BHLS, scale))
            context = mix(shares[-1].astype(value_BSGK.dtype), value_BSGK)
        return self.output(context)

"""Attention that never writes scores to memory on TPUs: JAX's splash kernels (sparse flash attention, in Pallas).

They support causal masks, windows and segments, and skip blocks that are masked by causality or a window. They have no dropout, prefixes
or relative positions, for which `module.dot_product_attention` is used.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lm_research.models.attention.mask import AttentionMask
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import per_device

# Blocks are multiples of the lanes of a TPU's vector unit, and as long as divides the sequence, up to the size that was measured to be
# the fastest on v6e (axlearn's pull request 958).
LANES, LONGEST_BLOCK = 128, 1024


def splash_attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    mask: AttentionMask,
    scale: float | jax.Array = 1.0,
    score_cap: float = 0.0,
) -> jax.Array:
    """`module.reference_attention` without scores in memory; equal up to rounding.

    On a mesh each device computes its sequences and heads. Without a TPU the kernels are interpreted, slowly.

    Args:
      query_BLHK: queries; L is a multiple of LANES.
      key_BSHK: keys; S is a multiple of LANES.
      value_BSHK: values.
      mask: the mask, without prefixes and distances.
      scale: factor on the scores.
      score_cap: soft cap c of the scores, c tanh(score / c); 0 for none.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    assert mask.prefix_BS is None and mask.distances_HX is None
    interpret = platform() == "cpu"

    def run(qkv: tuple[jax.Array, ...], segments: tuple[jax.Array, ...], _: None) -> jax.Array:
        query_BHLK, key_BHSK, value_BHSK = (x.swapaxes(1, 2) for x in qkv)
        heads, length = query_BHLK.shape[1:3]
        kernel = _kernel(mask.causal, mask.window, score_cap, heads, length, key_BHSK.shape[2], interpret)
        out_BHLK = jax.vmap(kernel)(query_BHLK, key_BHSK, value_BHSK, kernels.SegmentIds(*segments))
        return out_BHLK.swapaxes(1, 2).astype(value_BHSK.dtype)

    scaled = (query_BLHK * scale).astype(query_BLHK.dtype)
    segments = (mask.query_segments_BL, mask.key_segments_BS)
    return per_device(run, (scaled, key_BSHK, value_BSHK), segments, None)


def fits(length: int) -> bool:
    """Whether sequences of this length can be divided into blocks."""
    return length % LANES == 0


def _kernel(causal: bool, window: int, cap: float, heads: int, length: int, keys: int, interpret: bool) -> Any:
    shape = (length, keys)
    if window:
        sides = (window - 1, 0) if causal else (window // 2, window // 2)
        mask: masks.Mask = masks.LocalMask(shape, sides, 0)
    else:
        mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    queries, block = _block(length), _block(keys)
    sizes = kernels.BlockSizes(
        block_q=queries, block_kv=block, block_q_dkv=queries, block_kv_dkv=block, use_fused_bwd_kernel=True
    )
    make = functools.partial(
        kernels.make_splash_mha, head_shards=1, q_seq_shards=1, attn_logits_soft_cap=cap or None, interpret=interpret
    )
    return make(masks.MultiHeadMask([mask] * heads), block_sizes=sizes)


def _block(length: int) -> int:
    """The longest block that divides a length: a multiple of LANES, up to LONGEST_BLOCK."""
    return max(size for size in range(LANES, LONGEST_BLOCK + 1, LANES) if length % size == 0)

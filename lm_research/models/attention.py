"""Scaled dot-product attention (Vaswani et al. 2017) over padded or packed rows.

Legend: B batch, L query length, S key length, H heads, K head width, D model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layers import Dense, dropout
from lm_research.parallel.rules import constrain

# Added to scores that must not be seen. Finite, so that a row that sees nothing (padding) stays finite.
MASKED = -1e9


def attention_bias(segments_BL: jax.Array, causal: bool) -> jax.Array:
    """Additive mask [B, 1, L, L]: 0 where query and key share a segment (and the key is not later), MASKED elsewhere.

    Segment 0 is padding. It sees only itself, and no other segment sees it.
    """
    allowed = segments_BL[:, None, :, None] == segments_BL[:, None, None, :]
    if causal:
        length = segments_BL.shape[1]
        allowed &= jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)


def attend(
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    bias_B1LS: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """The reference implementation: softmax(q k^T / sqrt(K) + bias) v, softmax in float32.

    Args:
      query_BLHK, key_BSHK, value_BSHK: projections, any floating type.
      bias_B1LS: additive mask, float32.
      dropout_rate, dropout_key: dropout on the probabilities; a None key applies none.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    # Heads next to the batch first: the products then run over contiguous [L, K] matrices, 10 to 25% faster on a CPU.
    query_BHLK, key_BHSK, value_BHSK = (x.swapaxes(1, 2) for x in (query_BLHK, key_BSHK, value_BSHK))
    query_BHLK = query_BHLK * query_BHLK.shape[-1] ** -0.5
    scores_BHLS = jnp.einsum("BHLK,BHSK->BHLS", query_BHLK, key_BHSK, preferred_element_type=jnp.float32)
    probabilities_BHLS = jax.nn.softmax(scores_BHLS + bias_B1LS, axis=-1).astype(value_BHSK.dtype)
    probabilities_BHLS = dropout(probabilities_BHLS, dropout_rate, dropout_key)
    return jnp.einsum("BHLS,BHSK->BHLK", probabilities_BHLS, value_BHSK).swapaxes(1, 2)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biased projections."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width = [(arch.hidden_size, "embed")]
        heads = [(arch.num_heads, "heads"), (arch.head_width, None)]
        self.query = Dense(width, heads, arch, rngs)
        self.key = Dense(width, heads, arch, rngs)
        self.value = Dense(width, heads, arch, rngs)
        self.output = Dense(heads, width, arch, rngs, std=arch.residual_init_std)
        self.dropout_rate = arch.attention_dropout_rate

    def __call__(self, x_BLD: jax.Array, bias_B1LL: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        query, key, value = (
            constrain(project(x_BLD), "batch", None, "act_heads", None)
            for project in (self.query, self.key, self.value)
        )
        context_BLHK = attend(query, key, value, bias_B1LL, self.dropout_rate, dropout_key)
        return self.output(context_BLHK)

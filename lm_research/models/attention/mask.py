"""Which keys a query sees, and what its scores get for the distance between them.

Legend: B batch, L query length, S key length, H heads, X distances.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm_research.models.positions import by_distance

# Added to scores that must not be seen. Finite, so that a row that sees nothing (padding) stays finite.
MASKED = -1e9

Index = int | jax.Array


def attention_bias(
    query_segments_BL: jax.Array,
    key_segments_BS: jax.Array,
    causal: bool = False,
    window: Index = 0,
    prefix_BS: jax.Array | None = None,
    first_query: Index = 0,
    first_key: Index = 0,
) -> jax.Array:
    """Additive mask [B, 1, L, S]: 0 where query and key share a segment (and the key is not later), MASKED elsewhere.

    Args:
      query_segments_BL, key_segments_BS: 0 = padding, 1.. = packed document. Padding sees only itself, and no other
        segment sees it.
      causal: a query sees keys up to its own place.
      window: and of those only the latest `window`; 0 is all.
      prefix_BS: keys that all of their segment see, later or not (prefix language models); above 0 is one.
      first_query, first_key: places in the row of the first of either, where they are parts of rows.
    """
    allowed = query_segments_BL[:, None, :, None] == key_segments_BS[:, None, None, :]
    if causal:
        distance_LS = jnp.arange(query_segments_BL.shape[1])[:, None] - jnp.arange(key_segments_BS.shape[1])[None, :]
        distance_LS += first_query - first_key
        seen = distance_LS >= 0
        if not isinstance(window, int) or window:
            seen &= distance_LS < window
        if prefix_BS is not None:
            seen = seen | (prefix_BS[:, None, None, :] > 0)
        allowed &= seen
    return jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)


class AttentionMask(NamedTuple):
    """What `attention_bias` is made of, for attention that makes it a block at a time (ring.py).

    query_segments_BL, key_segments_BS, causal, window, prefix_BS: as there.
    window_from: the first block of the stack that has the window.
    distances_HX: added to scores by distance (key's place minus query's, from 1 - L to S - 1), or None.
    """

    query_segments_BL: jax.Array
    key_segments_BS: jax.Array
    causal: bool = False
    window: int = 0
    window_from: int = 0
    prefix_BS: jax.Array | None = None
    distances_HX: jax.Array | None = None

    def bias(self, first_query: Index, first_key: Index, layer: Index) -> jax.Array:
        """[B, 1 or H, L, S] of these segments, parts of rows that begin at the given places; `distances_HX` is of whole rows."""
        window = self.window
        if window and self.window_from:
            window = jnp.where(layer < self.window_from, jnp.iinfo(jnp.int32).max, window)
        segments = (self.query_segments_BL, self.key_segments_BS)
        bias = attention_bias(*segments, self.causal, window, self.prefix_BS, first_query, first_key)
        if self.distances_HX is None:
            return bias
        queries, keys = (x.shape[1] for x in segments)
        # Distances of this block: from first_key - (first_query + L - 1) on, and those of whole rows begin at 1 - (whole L).
        middle = self.distances_HX.shape[1] // 2
        first = middle + first_key - first_query - (queries - 1)
        own_HX = jax.lax.dynamic_slice_in_dim(self.distances_HX, first, queries + keys - 1, axis=1)
        return bias + by_distance(own_HX, queries)[None]

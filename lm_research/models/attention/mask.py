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
    window: int = 0,
    prefix_BS: jax.Array | None = None,
    first_query: Index = 0,
    first_key: Index = 0,
) -> jax.Array:
    """Additive mask [B, 1, L, S]: 0 where query and key share a segment (and the key is not later), MASKED elsewhere.

    Args:
      query_segments_BL, key_segments_BS: 0 = padding, 1.. = packed document. Padding sees only itself, and no other
        segment sees it.
      causal: a query sees keys up to its own place.
      window: and of those only the near ones, see `within`; 0 is all.
      prefix_BS: keys that all of their segment see, later or not (prefix language models); above 0 is one.
      first_query, first_key: places in the row of the first of either, where they are parts of rows.
    """
    allowed = query_segments_BL[:, None, :, None] == key_segments_BS[:, None, None, :]
    if causal or window:
        distance_LS = jnp.arange(query_segments_BL.shape[1])[:, None] - jnp.arange(key_segments_BS.shape[1])[None, :]
        distance_LS += first_query - first_key
        seen = distance_LS >= 0 if causal else True
        if window:
            seen &= within(distance_LS, window, causal)
        if prefix_BS is not None:
            seen = seen | (prefix_BS[:, None, None, :] > 0)
        allowed &= seen
    return as_bias(allowed)


def within(distance: jax.Array, window: int, causal: bool) -> jax.Array:
    """Whether a query's place minus a key's is inside of a window: the latest `window`, or window // 2 on each side and itself."""
    return distance < window if causal else jnp.abs(distance) <= window // 2


def as_bias(seen: jax.Array) -> jax.Array:
    """What is added to scores: 0 where a key is seen, else MASKED."""
    return jnp.where(seen, 0.0, MASKED).astype(jnp.float32)


def places_from(segments_BL: jax.Array) -> jax.Array:
    """Places counted from each row's first token that is no padding, so that padding in front moves nothing, [B, L]."""
    return jnp.arange(segments_BL.shape[1])[None] - jnp.argmax(segments_BL > 0, axis=1)[:, None]


def chunked(segments_BL: jax.Array, positions_BL: jax.Array, chunk: int) -> jax.Array:
    """Segments cut into chunks of so many positions: who shares a chunk shares one of these numbers, and padding has others.

    Args:
      segments_BL: 0 = padding.
      positions_BL: of each token in its document.
      chunk: length.
    """
    most = segments_BL.shape[1] // chunk + 2  # chunks that a segment can touch; the numbers of later ones begin again
    return segments_BL * most + (positions_BL // chunk) % most


class AttentionMask(NamedTuple):
    """What `attention_bias` is made of, for attention that makes it a block at a time (rings and kernels).

    query_segments_BL, key_segments_BS, causal, window, prefix_BS: as there.
    distances_HX: added to scores by distance (key's place minus query's, from 1 - L to S - 1), or None.
    """

    query_segments_BL: jax.Array
    key_segments_BS: jax.Array
    causal: bool = False
    window: int = 0
    prefix_BS: jax.Array | None = None
    distances_HX: jax.Array | None = None

    def bias(self, first_query: Index, first_key: Index) -> jax.Array:
        """[B, 1 or H, L, S] of these segments, parts of rows that begin at the given places; `distances_HX` is of whole rows."""
        segments = (self.query_segments_BL, self.key_segments_BS)
        bias = attention_bias(*segments, self.causal, self.window, self.prefix_BS, first_query, first_key)
        if self.distances_HX is None:
            return bias
        queries, keys = (x.shape[1] for x in segments)
        # Distances of this block: from first_key - (first_query + L - 1) on, and those of whole rows begin at 1 - (whole L).
        middle = self.distances_HX.shape[1] // 2
        first = middle + first_key - first_query - (queries - 1)
        own_HX = jax.lax.dynamic_slice_in_dim(self.distances_HX, first, queries + keys - 1, axis=1)
        return bias + by_distance(own_HX, queries)[None]

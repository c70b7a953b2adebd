"""Attention masks and biases by distance.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.models.positions import by_distance

# Added to masked scores. Finite, so that a query without keys (padding) has a finite softmax.
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
    window_ahead: int = -1,
) -> jax.Array:
    """Additive mask [B, 1, L, S]: 0 where a query attends to a key, MASKED elsewhere.

    Args:
      query_segments_BL: segment of each query: 0 = padding, 1.. = packed document. Queries attend to keys of their segment only.
      key_segments_BS: segment of each key.
      causal: whether queries attend only to keys up to their own position.
      window: restricts those to the near ones, see `in_window`; 0 is all.
      prefix_BS: above 0 for keys that their whole segment attends to, even from earlier positions (prefix language models).
      first_query: position of the first query, where the arrays are parts of sequences.
      first_key: position of the first key.
      window_ahead: as for `in_window`.
    """
    visible = query_segments_BL[:, None, :, None] == key_segments_BS[:, None, None, :]
    if causal or window:
        distance_LS = jnp.arange(query_segments_BL.shape[1])[:, None] - jnp.arange(key_segments_BS.shape[1])[None, :]
        distance_LS += first_query - first_key
        near = distance_LS >= 0 if causal else True
        if window:
            near &= in_window(distance_LS, window, causal, window_ahead)
        if prefix_BS is not None:
            near = near | (prefix_BS[:, None, None, :] > 0)
        visible &= near
    return mask_to_bias(visible)


def in_window(distance: jax.Array, window: int, causal: bool, window_ahead: int = -1) -> jax.Array:
    """Whether a key is in a query's window, by the query's position minus the key's.

    A causal window is the latest `window` positions; a bidirectional one is window // 2 positions on each side and the query's, or
    `window_ahead` later ones if it is not negative.
    """
    if causal:
        return distance < window
    ahead = window // 2 if window_ahead < 0 else window_ahead
    return (distance <= window // 2) & (distance >= -ahead)


def near_blocks(
    counts: tuple[int, int],
    sizes: tuple[int, int],
    causal: bool = False,
    window: int = 0,
    window_ahead: int = -1,
    has_prefix: bool = False,
) -> np.ndarray:
    """Whether a query of block i may see a key of block j by their positions, [I, J].

    Args:
      counts: numbers of blocks of queries and of keys.
      sizes: positions of a block of queries and of a block of keys.
      causal: as for `attention_bias`.
      window: as for `attention_bias`.
      window_ahead: as for `attention_bias`.
      has_prefix: whether some keys are seen from all positions.
    """
    first_query_I1, first_key_J = np.arange(counts[0])[:, None] * sizes[0], np.arange(counts[1]) * sizes[1]
    # The smallest and largest distance (query minus key) in a pair of blocks.
    nearest, farthest = first_query_I1 - (first_key_J + sizes[1] - 1), first_query_I1 + sizes[0] - 1 - first_key_J
    if has_prefix or not (causal or window):
        return np.ones(counts, bool)
    before = nearest < window if causal else nearest <= window // 2
    ahead = 0 if causal else window // 2 if window_ahead < 0 else window_ahead
    return (farthest >= -ahead) & (before | (window == 0))


def visited_blocks(
    near_IJ: np.ndarray, queries_BIQ: jax.Array, keys_BJN: jax.Array, by_keys: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The first key block that each block of queries visits, and the end of its range, [B, I]; or the query blocks of keys, [B, J].

    Args:
      near_IJ: result of `near_blocks`.
      queries_BIQ: segments of queries; blocks whose ranges of segments are disjoint do not see each other.
      keys_BJN: segments of keys.
      by_keys: whether blocks of keys visit those of queries.
    """
    meet_BIJ = queries_BIQ.min(-1)[:, :, None] <= keys_BJN.max(-1)[:, None, :]
    meet_BIJ &= queries_BIQ.max(-1)[:, :, None] >= keys_BJN.min(-1)[:, None, :]
    meet_BIJ &= near_IJ
    axis = 1 if by_keys else 2
    first = jnp.argmax(meet_BIJ, axis)
    last = jnp.where(meet_BIJ.any(axis), meet_BIJ.shape[axis] - jnp.argmax(jnp.flip(meet_BIJ, axis), axis), 0)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def block_bias(length: int, block: int, random_blocks: int = 0) -> np.ndarray:
    """Bias [L, L] of attention by block: 0 where a query's block sees a key's, else MASKED (Zaheer et al. 2020, section 2).

    A block sees itself, its two neighbors, and the first and last block, which see all. The random blocks that others see in addition are all
    the first one, as transformers chooses outside of training: its keys count 1 + `random_blocks` times. The whole square is stored, at a
    cost of L^2.
    """
    number_L = np.arange(length) // block
    queries, keys, last = number_L[:, None], number_L[None, :], number_L[-1]
    whole = (queries == 0) | (queries == last)
    visible = whole | (np.abs(queries - keys) <= 1) | (keys == 0) | (keys == last)
    repeated = np.where(~whole & (keys == 0), np.log1p(random_blocks), 0.0)
    return np.where(visible, repeated, MASKED).astype(np.float32)


def mask_to_bias(visible: jax.Array) -> jax.Array:
    """Additive mask of a boolean one: 0 where it is true, else MASKED; float32."""
    return jnp.where(visible, 0.0, MASKED).astype(jnp.float32)


def positions_from_segments(segments_BL: jax.Array) -> jax.Array:
    """Positions [B, L] counted from each sequence's first real token, so that padding on the left changes nothing."""
    return jnp.arange(segments_BL.shape[1])[None] - jnp.argmax(segments_BL > 0, axis=1)[:, None]


def document_positions(segments_BL: jax.Array) -> jax.Array:
    """Positions [B, L] of the real tokens of unpacked sequences, counted from 0 wherever padding is, which has position -1."""
    real_BL = (segments_BL > 0).astype(jnp.int32)
    return jnp.cumsum(real_BL, axis=1) * real_BL - 1


def packed_segments(positions_BL: jax.Array) -> jax.Array:
    """Number the sequences in rows of packed ones from 1, [B, L]; another one begins where a position is not the next."""
    steps_BL = jnp.diff(positions_BL, prepend=positions_BL[..., :1] - 1)
    return 1 + jnp.cumsum(steps_BL != 1, axis=-1)


def chunk_segments(segments_BL: jax.Array, positions_BL: jax.Array, chunk: int) -> jax.Array:
    """Divide segments into chunks, [B, L]: positions have the same number if they share a segment and a chunk.

    Args:
      segments_BL: segment of each position; 0 = padding.
      positions_BL: position of each token in its document.
      chunk: length of a chunk.
    """
    num_chunks = segments_BL.shape[1] // chunk + 2  # chunks that a segment can touch; numbers of later ones start over
    return segments_BL * num_chunks + (positions_BL // chunk) % num_chunks


class AttentionMask(NamedTuple):
    """The specification of an attention mask, for attention that computes it blockwise (rings and kernels).

    query_segments_BL, key_segments_BS, causal, window, prefix_BS and window_ahead are the arguments of `attention_bias`. `distances_HX`
    is added to scores by distance, the key's position minus the query's, from 1 - L to S - 1, and `key_bias_BHS` by key; None for no
    such bias.
    """

    query_segments_BL: jax.Array
    key_segments_BS: jax.Array
    causal: bool = False
    window: int = 0
    prefix_BS: jax.Array | None = None
    distances_HX: jax.Array | None = None
    window_ahead: int = -1
    key_bias_BHS: jax.Array | None = None

    def bias(self, first_query: Index, first_key: Index) -> jax.Array:
        """Bias [B, 1 or H, L, S] of parts of sequences that start at these positions; `distances_HX` is that of whole sequences."""
        segments = (self.query_segments_BL, self.key_segments_BS)
        bias = attention_bias(
            *segments, self.causal, self.window, self.prefix_BS, first_query, first_key, self.window_ahead
        )
        bias = bias if self.key_bias_BHS is None else bias + self.key_bias_BHS[:, :, None]
        if self.distances_HX is None:
            return bias
        queries, keys = (x.shape[1] for x in segments)
        # This block's distances start at first_key - (first_query + L - 1); those of whole sequences start at 1 - (whole L).
        middle = self.distances_HX.shape[1] // 2
        first = middle + first_key - first_query - (queries - 1)
        block_HX = jax.lax.dynamic_slice_in_dim(self.distances_HX, first, queries + keys - 1, axis=1)
        return bias + by_distance(block_HX, queries)[None]

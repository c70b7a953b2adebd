"""Sums of blocks as further keys and values: transient-global attention (Guo et al. 2021, section 3.2).

Legend: lm_research/models/__init__.py; here G is blocks of a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.models.attention.mask import mask_to_bias
from lm_research.models.positions import distance_table


class BlockSums(NamedTuple):
    """The blocks of sequences: above 0 in `members_BLG` where a position belongs to one, and the bias of each query for each block."""

    members_BLG: jax.Array
    bias_BHLG: jax.Array


def block_sums(segments_BL: jax.Array, size: int, table_RH: jax.Array, max_distance: int) -> BlockSums | None:
    """Divide segments into blocks that their positions attend to; None if the sequence is shorter than a block.

    Only full blocks count; the positions after the last full one belong to it. Blocks of the first segment are counted from the start of the
    row, padding included, but their number is that of block ends at real positions: with padding on the left the last ones are one. Those of
    later segments are counted from the segment's start.

    Args:
      segments_BL: segment of each position; 0 = padding.
      size: length of a block.
      table_RH: bias by distance in blocks.
      max_distance: of `distance_buckets`.
    """
    length = segments_BL.shape[1]
    count = length // size
    if not count:
        return None
    same_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    first_BL = jnp.where(segments_BL > 1, jnp.argmax(same_BLS, axis=2), 0)
    place_BL = jnp.arange(length) - first_BL
    ends_BS = (segments_BL > 0) & (place_BL % size == size - 1)
    full_BL1 = (same_BLS & ends_BS[:, None]).sum(2)[..., None]
    earlier_BLS = segments_BL[:, None, :] < segments_BL[:, :, None]
    before_BL1 = (earlier_BLS & ends_BS[:, None]).sum(2)[..., None]
    own_BL1 = jnp.minimum(jnp.asarray(_block_numbers(length, size))[place_BL][..., None], full_BL1 - 1)
    number_BLG = jnp.arange(count) - before_BL1
    visible_BLG = (number_BLG >= 0) & (number_BLG < full_BL1) & (segments_BL > 0)[..., None]
    # Distances from -G to G; with a table's row by index.
    table_HX = distance_table(table_RH, count + 1, max_distance, bidirectional=True)
    distance_BLG = jnp.where(visible_BLG, number_BLG - own_BL1, 0)
    bias_BHLG = jnp.moveaxis(table_HX.T[distance_BLG + count], -1, 1) + mask_to_bias(visible_BLG)[:, None]
    return BlockSums(visible_BLG & (number_BLG == own_BL1), bias_BHLG)


def _block_numbers(length: int, size: int) -> np.ndarray:
    """The block of each position, [L], by a running sum of 1 / size in float32 as in training: rounding moves some positions by a block."""
    step = np.float32(1) / np.float32(size)
    total_L = np.cumsum(np.full(length, step, np.float64)).astype(np.float32) - step
    return np.floor(np.float32(1) + total_L - np.float32(1)).astype(np.int32)

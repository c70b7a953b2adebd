"""Fill the rows of a batch with pieces of a token store, whole batches at once, without a loop over rows.

Legend: B rows, L length, P pieces, T tokens of all pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.data.stateless_rng import GOLDEN, uniform_draw
from lm_research.data.store import Tokens


class Ragged(NamedTuple):
    """Piece and offset of every element of pieces of different lengths, one piece after another: [T] each."""

    piece: np.ndarray
    offset: np.ndarray


def ragged(lengths_P: np.ndarray) -> Ragged:
    """Number the elements of pieces: the piece each belongs to, and its offset in it.

    Example: lengths [2, 0, 3] give piece [0, 0, 2, 2, 2] and offset [0, 1, 0, 1, 2].
    """
    lengths_P = np.asarray(lengths_P, np.int64)
    piece_T = np.repeat(np.arange(len(lengths_P)), lengths_P)
    return Ragged(piece_T, np.arange(len(piece_T)) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P))


def copy_pieces(
    rows_BL: np.ndarray,
    row_P: np.ndarray,
    column_P: np.ndarray,
    tokens: Tokens,
    start_P: np.ndarray,
    length_P: np.ndarray,
) -> None:
    """Write tokens[start : start + length] of each piece into its row, beginning at its column, in place.

    Example: rows of zeros [2, 4], row [0, 1], column [1, 0], tokens [5 6 7 8 9], start [0, 2], length [2, 3] give

        0 5 6 0
        7 8 9 0
    """
    piece_T, offset_T = ragged(length_P)
    place_T = (row_P * rows_BL.shape[1] + column_P)[piece_T] + offset_T
    rows_BL.reshape(-1)[place_T] = tokens[start_P[piece_T] + offset_T]


def mark_pieces(
    rows_BL: np.ndarray,
    row_P: np.ndarray,
    column_P: np.ndarray,
    length_P: np.ndarray,
    value_P: np.ndarray | int | None,
) -> None:
    """Fill each piece's columns with one value, in place; None fills them with 0, 1, ..., length - 1.

    Example: rows of zeros [1, 5], row [0, 0], column [0, 2], length [2, 3] give 7 7 8 8 8 for values [7, 8], and
    0 1 0 1 2 for None.
    """
    piece_T, offset_T = ragged(length_P)
    place_T = (row_P * rows_BL.shape[1] + column_P)[piece_T] + offset_T
    value_T = offset_T if value_P is None else value_P[piece_T] if isinstance(value_P, np.ndarray) else value_P
    rows_BL.reshape(-1)[place_T] = value_T


def exclusive_cumsum(lengths_P: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """Sum the lengths of earlier pieces of the same group; the pieces of a group are adjacent.

    Example: lengths [2, 3, 4, 1] of groups [0, 0, 0, 1] give [0, 2, 5, 0].
    """
    ends_P = np.cumsum(lengths_P)
    first_P = np.flatnonzero(np.diff(group_P, prepend=-1))
    counts = np.diff(np.append(first_P, len(group_P)))
    return ends_P - lengths_P - np.repeat((ends_P - lengths_P)[first_P], counts)


def ragged_uniform(keys_P: np.ndarray, counts_P: np.ndarray, start: int) -> np.ndarray:
    """Read `count` draws of each piece's stream, beginning with draw `start`: float64 [T].

    Draw n of a stream is mix(key + (n + 1) GOLDEN), so draw n is also the first draw of the key moved by n GOLDEN.
    """
    piece_T, offset_T = ragged(counts_P)
    moved_T = keys_P[piece_T] + offset_T.astype(np.uint64) * np.uint64(GOLDEN)
    return uniform_draw(moved_T, start)


def lowest_k_mask(values_BR: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """Mark the `counts` (at most R) smallest values of each row, bool [B, R]; all values equal to the largest marked one are marked.

    Example: [0.4, 0.1, 0.3] with count 2 gives [False, True, True].
    """
    if not values_BR.size:
        return np.zeros(values_BR.shape, bool)
    ordered_BR = np.sort(values_BR)
    limit_B1 = np.take_along_axis(ordered_BR, counts_B[:, None] - 1, axis=1)  # unused where the count is 0
    return (values_BR <= limit_B1) & (counts_B > 0)[:, None]


def positions_of(chosen_BL: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """List the chosen columns of each row in order, [B, width] padded with 0, and mark which entries are real.

    Example: [False, True, False, True] with width 3 gives [1, 3, 0] and [True, True, False].
    """
    counts_B = chosen_BL.sum(1)
    real_BM = np.arange(width) < counts_B[:, None]
    columns_BM = np.zeros(real_BM.shape, np.int64)
    columns_BM[real_BM] = np.nonzero(chosen_BL)[1]
    return columns_BM, real_BM

"""Rows of a batch made of pieces of a token store: whole batches at once, without a loop over rows.

Legend: B rows, L length, P pieces, T tokens of all pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.data.stateless_rng import GOLDEN, uniform


class Ragged(NamedTuple):
    """Numbers of all elements of pieces of different lengths, one piece after another: [T] each."""

    piece: np.ndarray
    offset: np.ndarray


def ragged(lengths_P: np.ndarray) -> Ragged:
    """The piece that each element belongs to, and its number within it."""
    lengths_P = np.asarray(lengths_P, np.int64)
    piece_T = np.repeat(np.arange(len(lengths_P)), lengths_P)
    return Ragged(piece_T, np.arange(len(piece_T)) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P))


def copy_pieces(
    rows_BL: np.ndarray,
    row_P: np.ndarray,
    column_P: np.ndarray,
    tokens: np.ndarray,
    start_P: np.ndarray,
    length_P: np.ndarray,
) -> None:
    """Writes tokens[start : start + length] of each piece into its row from its column on, in place."""
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
    """Writes one value per piece into its places, in place; None: the places' numbers, 0 up."""
    piece_T, offset_T = ragged(length_P)
    place_T = (row_P * rows_BL.shape[1] + column_P)[piece_T] + offset_T
    value_T = offset_T if value_P is None else value_P[piece_T] if isinstance(value_P, np.ndarray) else value_P
    rows_BL.reshape(-1)[place_T] = value_T


def exclusive_cumsum(lengths_P: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """Sum of the lengths of earlier pieces of the same group; pieces of a group stand together."""
    ends_P = np.cumsum(lengths_P)
    first_P = np.flatnonzero(np.diff(group_P, prepend=-1))
    counts = np.diff(np.append(first_P, len(group_P)))
    return ends_P - lengths_P - np.repeat((ends_P - lengths_P)[first_P], counts)


def ragged_uniform(keys_P: np.ndarray, counts_P: np.ndarray, start: int) -> np.ndarray:
    """As many draws of each piece's stream as its count, from draw `start` on: float64 [T].

    Draw n of a stream is made of key + (n + 1) GOLDEN, so draws of different numbers are first draws of moved keys.
    """
    piece_T, offset_T = ragged(counts_P)
    moved_T = keys_P[piece_T] + offset_T.astype(np.uint64) * np.uint64(GOLDEN)
    return uniform(moved_T, 1, start)[:, 0]


def lowest_k_mask(values_BR: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """Bool [B, R]: which values are among the `counts` smallest of their row; equal values count together."""
    if not values_BR.size:
        return np.zeros(values_BR.shape, bool)
    ordered_BR = np.sort(values_BR, axis=1)
    last_B = np.clip(counts_B - 1, 0, values_BR.shape[1] - 1)
    limit_B = np.take_along_axis(ordered_BR, last_B[:, None].astype(np.int64), axis=1)
    return (values_BR <= limit_B) & (np.asarray(counts_B) > 0)[:, None]


def positions_of(chosen_BL: np.ndarray, room: int, absent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the chosen places, in order, at the front of [B, room], and bool: which of them are real."""
    counts_B = chosen_BL.sum(1)
    real_BM = np.arange(room) < counts_B[:, None]
    columns_BM = np.full(real_BM.shape, absent, np.int64)
    columns_BM[real_BM] = np.nonzero(chosen_BL)[1]
    return columns_BM, real_BM

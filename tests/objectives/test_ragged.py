"""Pieces of rows against their docstrings' examples and against loops over the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from lm_research.data.stateless_rng import example_keys, uniform
from lm_research.objectives.ragged import (
    copy_pieces,
    exclusive_cumsum,
    lowest_k_mask,
    mark_pieces,
    positions_of,
    ragged,
    ragged_uniform,
)


def test_elements_of_pieces() -> None:
    piece, offset = ragged(np.array([2, 0, 3]))
    assert (piece.tolist(), offset.tolist()) == ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])


def test_pieces_are_written_to_their_places_only() -> None:
    rows, row, column = np.zeros((2, 4), int), np.array([0, 1]), np.array([1, 0])
    copy_pieces(rows, row, column, np.arange(5, 10), np.array([0, 2]), np.array([2, 3]))
    assert rows.tolist() == [[0, 5, 6, 0], [7, 8, 9, 0]]
    mark_pieces(rows, row, column, np.array([1, 2]), np.array([3, 4]))
    assert rows.tolist() == [[0, 3, 6, 0], [4, 4, 9, 0]]
    mark_pieces(rows, row, column, np.array([2, 3]), None)
    assert rows.tolist() == [[0, 0, 1, 0], [0, 1, 2, 0]]
    mark_pieces(rows, row, column, np.array([1, 1]), 8)
    assert rows.tolist() == [[0, 8, 1, 0], [8, 1, 2, 0]]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_lengths_before_a_piece_are_those_of_its_group(first: int) -> None:
    """Groups may have any numbers: rows without pieces are left out."""
    group = np.array([0, 0, 0, 1, 3]) + first
    assert exclusive_cumsum(np.array([2, 3, 4, 1, 6]), group).tolist() == [0, 2, 5, 0, 0]


def test_draws_of_pieces_are_those_of_their_streams() -> None:
    keys, counts = example_keys(3, "test", 0, np.arange(4)), np.array([2, 0, 5, 1])
    whole = uniform(keys, 5, start=7)
    expected = [whole[piece, draw] for piece, count in enumerate(counts) for draw in range(count)]
    assert ragged_uniform(keys, counts, 7).tolist() == expected


def test_the_lowest_values_of_rows() -> None:
    """As many as each row's count, from none to all; equal values are chosen together."""
    values = np.array([[0.4, 0.1, 0.3], [0.4, 0.1, 0.3], [0.2, 0.9, 0.5], [0.7, 0.7, 0.1], [0.3, 0.2, 0.1]])
    found = lowest_k_mask(values, np.array([1, 2, 0, 2, 3]))
    assert found.astype(int).tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert lowest_k_mask(np.zeros((2, 0)), np.array([0, 0])).shape == (2, 0)


def test_chosen_columns_in_order() -> None:
    columns, real = positions_of(np.array([[0, 1, 0, 1], [0, 0, 0, 0]], bool), 3)
    assert columns.tolist() == [[1, 3, 0], [0, 0, 0]] and real.astype(int).tolist() == [[1, 1, 0], [0, 0, 0]]

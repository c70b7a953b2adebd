"""Packing: which short examples share a row.

Legend: n examples, R rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.data.store import TokenStore
from lm_research.objectives.ragged import ragged


class Packs(NamedTuple):
    """Examples of each row: row r has items[starts[r] : starts[r + 1]], in ascending order."""

    items: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1


class DocumentChunks(NamedTuple):
    """Consecutive tokens of a store: the first token of each chunk and its length, int64 [n]."""

    starts: np.ndarray
    lengths: np.ndarray


def split_documents(store: TokenStore, chunk_size: int) -> DocumentChunks:
    """Cut documents into chunks of `chunk_size` tokens, the last one shorter; every token is in one chunk.

    Example: documents of 5 and 2 tokens with chunk size 3 give starts [0, 3, 5] and lengths [3, 2, 2].
    """
    ends = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
    counts = -(-np.diff(ends) // chunk_size)
    document, number = ragged(counts)
    starts = ends[:-1][document] + number * chunk_size
    return DocumentChunks(starts, np.minimum(ends[1:][document] - starts, chunk_size))


def one_per_row(count: int) -> Packs:
    """Give each example its own row."""
    return Packs(np.arange(count), np.arange(count + 1))


def pack(sizes: np.ndarray, capacity: int) -> Packs:
    """Pack examples into rows by best-fit decreasing: longest first, each into the fullest row that still fits it.

    All examples of one size are placed together (Krell et al. 2021, arXiv:2107.02027), so the time hardly depends on their number.

    Example: sizes [5, 4, 4, 3, 2] with capacity 8. The 5 opens row 0 (3 left). The two 4s do not fit and share row 1 (0 left).
    The 3 fills row 0, and the 2 opens row 2: rows {0, 3}, {1, 2}, {4}.

    Args:
      sizes: int [n], each from 1 to `capacity`.
      capacity: tokens in a row.
    """
    sizes = np.asarray(sizes, np.int64)
    assert sizes.size == 0 or (sizes.min() >= 1 and sizes.max() <= capacity), (sizes.min(), sizes.max(), capacity)
    by_size = np.argsort(-sizes, kind="stable")
    row = np.empty(len(sizes), np.int64)
    open_rows: list[list[np.ndarray]] = [[] for _ in range(capacity)]  # by the number of tokens left
    rows, position = 0, 0
    for size in range(capacity, 0, -1):
        count = int(np.searchsorted(-sizes[by_size], -size, side="right")) - position
        waiting = by_size[position : position + count]
        position += count
        left = size
        while len(waiting) and left < capacity:
            if not open_rows[left]:
                left += 1
                continue
            fitting = open_rows[left].pop()
            used, unused = fitting[: len(waiting)], fitting[len(waiting) :]
            row[waiting[: len(used)]] = used
            waiting = waiting[len(used) :]
            if len(unused):
                open_rows[left].append(unused)
            open_rows[left - size].append(used)
            if left - size >= size:  # the rows just used are now the fullest that fit
                left -= size
        each = capacity // size  # examples that fit nowhere open new rows, `each` per row
        opened = rows + np.arange(len(waiting)) // each
        row[waiting] = opened
        if len(waiting):
            new = int(opened[-1]) + 1 - rows
            full = len(waiting) // each
            if full:
                open_rows[capacity - each * size].append(np.arange(rows, rows + full))
            if new > full:
                open_rows[capacity - (len(waiting) - full * each) * size].append(np.array([rows + full]))
            rows += new
    items = np.argsort(row, kind="stable")
    return Packs(items, np.searchsorted(row[items], np.arange(rows + 1)))


def unpack(packs: Packs, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the examples of some rows, row after row: (row of the batch, example). A row with index -1 is empty.

    Example: rows {0, 3} and {1, 2} as a batch [1, -1, 0] give rows [0, 0, 2, 2] and examples [1, 2, 0, 3].
    """
    first_B = packs.starts[index_B]
    counts_B = np.where(index_B >= 0, packs.starts[index_B + 1] - first_B, 0)
    row_P = np.repeat(np.arange(len(index_B)), counts_B)
    offset_P = np.arange(len(row_P)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    return row_P, packs.items[first_B[row_P] + offset_P]


def describe_rows(sizes: np.ndarray, capacity: int, packs: Packs) -> str:
    """Describe how full rows are; `sizes` are those of the examples, special tokens included."""
    used = sizes.sum() / max(1, len(packs) * capacity)
    return f"{len(sizes) / max(1, len(packs)):.2f} texts a row, {used:.1%} of positions used"

"""Several short examples in one row: which go together.

Legend: n examples, R rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.data.store import TokenStore
from lm_research.objectives.ragged import ragged


class Packs(NamedTuple):
    """Examples by row: those of row r are items[starts[r] : starts[r + 1]], in ascending order."""

    items: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1


class DocumentChunks(NamedTuple):
    """Runs of a store's tokens: the first token of each, and how many. int64 [n]."""

    starts: np.ndarray
    lengths: np.ndarray


def split_documents(store: TokenStore, room: int) -> DocumentChunks:
    """Documents in pieces of `room` tokens, the last of each shorter: every token once."""
    ends = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
    counts = -(-np.diff(ends) // room)
    document, number = ragged(counts)
    starts = ends[:-1][document] + number * room
    return DocumentChunks(starts, np.minimum(ends[1:][document] - starts, room))


def alone(count: int) -> Packs:
    """Each example in a row of its own."""
    return Packs(np.arange(count), np.arange(count + 1))


def pack(sizes: np.ndarray, room: int) -> Packs:
    """Packs examples into as few rows as best-fit decreasing finds (the longest first, each where the least is left).

    Works on the histogram of sizes (Krell et al. 2021, arXiv:2107.02027), so its time hardly grows with their number.

    Args:
      sizes: int [n], each from 1 to `room`.
      room: what a row holds.
    """
    sizes = np.asarray(sizes, np.int64)
    assert sizes.size == 0 or (sizes.min() >= 1 and sizes.max() <= room), (sizes.min(), sizes.max(), room)
    by_size = np.argsort(-sizes, kind="stable")
    row = np.empty(len(sizes), np.int64)
    open_rows: list[list[np.ndarray]] = [[] for _ in range(room + 1)]  # by the room that is left
    rows, position = 0, 0
    for size in range(room, 0, -1):
        count = int(np.searchsorted(-sizes[by_size], -size, side="right")) - position
        waiting = by_size[position : position + count]
        position += count
        left = size
        while len(waiting) and left <= room:
            if not open_rows[left]:
                left += 1
                continue
            fitting = open_rows[left].pop()
            used, kept = fitting[: len(waiting)], fitting[len(waiting) :]
            row[waiting[: len(used)]] = used
            waiting = waiting[len(used) :]
            if len(kept):
                open_rows[left].append(kept)
            open_rows[left - size].append(used)
            left = max(size, left - size) if left - size >= size else left
        each = room // size  # what fits nowhere opens rows, as many in each as it holds
        opened = rows + np.arange(len(waiting)) // each
        row[waiting] = opened
        if len(waiting):
            new = int(opened[-1]) + 1 - rows
            full = len(waiting) // each
            if full:
                open_rows[room - each * size].append(np.arange(rows, rows + full))
            if new > full:
                open_rows[room - (len(waiting) - full * each) * size].append(np.array([rows + full]))
            rows += new
    items = np.argsort(row, kind="stable")
    return Packs(items, np.searchsorted(row[items], np.arange(rows + 1)))


def rows_of(packs: Packs, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples of some rows: (row of the batch, example), row after row. An index of -1 has none."""
    first_B = np.where(index_B >= 0, packs.starts[index_B], 0)
    counts_B = np.where(index_B >= 0, packs.starts[index_B + 1] - first_B, 0)
    row_P = np.repeat(np.arange(len(index_B)), counts_B)
    offset_P = np.arange(len(row_P)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    return row_P, packs.items[first_B[row_P] + offset_P]


def describe_rows(sizes: np.ndarray, room: int, packs: Packs) -> str:
    """How full rows are, in words; `sizes` are those of the examples, special tokens included."""
    used = sizes.sum() / max(1, len(packs) * room)
    return f"{len(sizes) / max(1, len(packs)):.2f} texts a row, {used:.1%} of positions used"

"""Records as rows: one a row, padded; or several, which do not attend to each other.

Legend: A accumulation steps, B batch, K slots of a row, L length, N records, P pieces, R rows.
"""

from __future__ import annotations

import functools

import numpy as np
from typing_extensions import override

from lm_research.common.rounding import bucket_size, ceil_div, few_sizes, padded_length
from lm_research.data.sampler import Examples, SharedRowExamples
from lm_research.data.store import TokenStore
from lm_research.models.architecture import Architecture
from lm_research.objectives.packing import Packs, pack
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.tasks.dataset import IGNORED

_MIN_SLOT_TOKENS = 8  # the smallest size that a record with a slot is counted with
_SAMPLED_BATCHES = 256  # packed to find how many rows a batch usually needs


def why_alone(arch: Architecture) -> str:
    """Say why records of a model cannot share rows without a change of their results; "" if they can."""
    for stack in (arch, arch.encoder):
        for spec in () if stack is None else stack.layers:
            if spec.attention == "blocks":
                return "its attention by block divides whole rows into blocks"
            if spec.span_conv_width:
                return "its convolutions mix the padding after a text into the text"
    return ""


class PaddedExamples(Examples):
    """Records of a data set as padded rows, one record a row.

    Attributes:
      starts: where each record begins in the store's tokens [N + 1].
      lengths: tokens of each record [N].
      second: where the second text begins within each record [N]; 0 without one.
      groups: numbers that are equal for records of one group [N].
      credits: the relevance (0 to 1) of choosing each record of its group [N].
    """

    def __init__(
        self, store: TokenStore, arrays: dict[str, np.ndarray], pad_id: int, max_length: int, by_token: bool
    ) -> None:
        starts = np.asarray(store.document_starts)
        self.starts = np.asarray(store.sentence_starts)[starts]
        self.lengths, self.store, self.pad_id, self.max_length = np.diff(self.starts), store, pad_id, max_length
        self.labels, self.second, self.by_token = arrays["labels"], arrays["second"], by_token
        self.num_examples = store.num_documents
        self.groups: np.ndarray | None = None
        self.credits: np.ndarray | None = None

    @override
    def example_lengths(self) -> np.ndarray | None:
        return self.lengths

    def width(self, index_B: np.ndarray) -> int:
        """Compute the row length of a global batch: its longest record's, rounded up."""
        return min(self.max_length, padded_length(int(self.lengths[np.maximum(index_B, 0)].max(initial=1))))

    @override
    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch(epoch_B, index_B, self.width(index_G))

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """Make a batch: tokens, types, segments [B, L] int32; labels [B], [B, C] or, of tokens, [B, L]; row_weights [B] float32."""
        real_B, item_B = index_B >= 0, np.maximum(index_B, 0)
        lengths_B = np.where(real_B, self.lengths[item_B], 0)
        tokens_BL = np.full((len(index_B), width or self.max_length), self.pad_id, np.int32)
        rows_B, first = np.arange(len(index_B)), np.zeros(len(index_B), np.int64)
        copy_pieces(tokens_BL, rows_B, first, self.store.tokens, self.starts[item_B], lengths_B)
        column_L = np.arange(tokens_BL.shape[1])
        segments_BL = (column_L < lengths_B[:, None]).astype(np.int32)
        second_B = self.second[item_B][:, None]
        types_BL = ((second_B > 0) & (column_L >= second_B)).astype(np.int32) * segments_BL
        batch = {"tokens_BL": tokens_BL, "types_BL": types_BL, "segments_BL": segments_BL}
        if self.by_token:
            labels_BL = np.full_like(tokens_BL, IGNORED)
            copy_pieces(labels_BL, rows_B, first, self.labels, self.starts[item_B], lengths_B)
            batch["labels_BL"] = labels_BL
        else:
            batch["labels_B"] = self.labels[item_B]
        if self.groups is not None:
            batch["groups_B"] = self.groups[item_B]
        if self.credits is not None:
            batch["credits_B"] = self.credits[item_B]
        return batch | {"row_weights_B": real_B.astype(np.float32)}


class WindowExamples(PaddedExamples):
    """Windows as rows: a record may have several. Batches hold each window's number, counted from `first`."""

    first = 0

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """Make a batch like PaddedExamples, with window_B [B] int32 in addition."""
        numbers_B = (self.first + np.maximum(index_B, 0)).astype(np.int32)
        return super().batch(epoch_B, index_B, width) | {"window_B": numbers_B}


class SharedRows(SharedRowExamples):
    """Records packed into as few rows as a batch needs. A batch has the same records as without packing.

    Some sampled batches decide how many rows all have, so that few programs are compiled: as many as the largest needs, or if that is
    much more than the mean, one of two numbers. Where records are placed affects only dropout's random draws.

    Attributes:
      sizes: the part of a row that each record takes, at most `capacity` [N].
      capacity: that of a whole row.
      slots: the most records of a row; 0 for any number.
    """

    sizes: np.ndarray
    capacity: int
    slots: int = 0

    @functools.cached_property
    def _row_counts(self) -> dict[tuple[int, int], list[int]]:
        """Results of `row_counts`."""
        return {}

    @override
    def arrange(self, index_AB: np.ndarray, row_multiple: int) -> np.ndarray:
        packs, count = [self._pack(index_B) for index_B in index_AB], index_AB.shape[1]
        needed, counts = max(map(len, packs)), self.row_counts(count, row_multiple)
        largest = min(
            bucket_size(ceil_div(needed, row_multiple)) * row_multiple, count
        )  # if no sampled batch needed as many
        rows = next((rows for rows in counts if rows >= needed), largest)
        slots = self.slots or max(int(np.diff(packed.starts).max()) for packed in packs)
        index_ARK = np.full((len(index_AB), rows, slots), -1, np.int64)
        for index_RK, index_B, packed in zip(index_ARK, index_AB, packs, strict=True):
            row_P = np.repeat(np.arange(len(packed)), np.diff(packed.starts))
            index_RK[row_P, exclusive_cumsum(np.ones_like(row_P), row_P)] = index_B[packed.items]
        return index_ARK

    def _pack(self, index_B: np.ndarray) -> Packs:
        return pack(self.sizes[index_B], self.capacity)

    def row_counts(self, count: int, row_multiple: int) -> list[int]:
        """Find the usual numbers of rows of `count` records, one or two in ascending order, all multiples of `row_multiple`."""
        key = count, row_multiple
        if key not in self._row_counts:
            drawn = np.random.default_rng(0).integers(0, len(self.sizes), (_SAMPLED_BATCHES, count))
            needed = [ceil_div(len(self._pack(index_B)), row_multiple) * row_multiple for index_B in drawn]
            self._row_counts[key] = few_sizes(np.minimum(needed, count))
        return self._row_counts[key]


def slots_of(index_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the records in the slots of rows, row after row: (row, slot, record), [P] each."""
    row_P, slot_P = np.nonzero(index_BK >= 0)
    return row_P, slot_P, index_BK[row_P, slot_P]


class PackedExamples(SharedRows, PaddedExamples):
    """Labeled records that share rows as long as the longest record, rounded up, with K slots for records."""

    def __init__(
        self, store: TokenStore, arrays: dict[str, np.ndarray], pad_id: int, max_length: int, by_token: bool
    ) -> None:
        super().__init__(store, arrays, pad_id, max_length, by_token)
        self.capacity = self.max_length = min(max_length, padded_length(int(self.lengths.max(initial=1))))
        self.slots = max(1, self.max_length // _MIN_SLOT_TOKENS)
        # The minimum size keeps a row from having more records than slots.
        self.sizes = np.maximum(self.lengths, min(_MIN_SLOT_TOKENS, self.max_length))
        self.notes = f"records share rows of {self.max_length} tokens"

    @override
    def example_lengths(self) -> None:
        return None  # all rows are equally long

    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch: tokens, types, segments, positions [B, L] int32; labels [B, K], [B, K, C] or, of tokens, [B, L]; row_weights [B, K]."""
        row_P, slot_P, item_P = slots_of(index_BK)
        start_P, length_P = self.starts[item_P], self.lengths[item_P]
        column_P = exclusive_cumsum(length_P, row_P)
        shape = (len(index_BK), self.max_length)
        names = ("types_BL", "segments_BL", "positions_BL")
        batch = {"tokens_BL": np.full(shape, self.pad_id, np.int32)} | {
            name: np.zeros(shape, np.int32) for name in names
        }
        copy_pieces(batch["tokens_BL"], row_P, column_P, self.store.tokens, start_P, length_P)
        mark_pieces(batch["segments_BL"], row_P, column_P, length_P, slot_P + 1)
        mark_pieces(batch["positions_BL"], row_P, column_P, length_P, None)
        pair_P, second_P = self.second[item_P] > 0, self.second[item_P]
        row_Q, column_Q, length_Q = (x[pair_P] for x in (row_P, column_P + second_P, length_P - second_P))
        mark_pieces(batch["types_BL"], row_Q, column_Q, length_Q, 1)
        if self.by_token:
            batch["labels_BL"] = np.full(shape, IGNORED, np.int32)
            copy_pieces(batch["labels_BL"], row_P, column_P, self.labels, start_P, length_P)
        else:
            batch["labels_BK"] = self.labels[np.maximum(index_BK, 0)]
        return batch | {"row_weights_BK": (index_BK >= 0).astype(np.float32)}

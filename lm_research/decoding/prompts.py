"""Prompts of different lengths as one batch: padded on the left to one of few lengths, so that few shapes are compiled.

Legend: B rows, P slots of prompts, M places of the encoder's rows.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from lm_research.common.rounding import bucket_size, round_up
from lm_research.errors import UserError
from lm_research.models.architecture import Architecture
from lm_research.tokenizers.base import Tokenizer

# Added to a token that a mask hides in an encoder's rows. The token is kept, because it moves the positions of what comes after it,
# and encoders that count positions from their padding pass over that one token alone.
HIDDEN = -(2**40)


Array = TypeVar("Array", np.ndarray, jax.Array)


class Prompts(NamedTuple, Generic[Array]):
    """What a batch starts from, of NumPy's arrays on the host and of JAX's in a program; rows that are not real fill it up.

    tokens_BP: padded on the left; start_B: the first slot of each row's prompt. Of an encoder-decoder these are the
    decoder's, and source_BM, source_mask_BM the encoder's tokens, padded on the right. digest_B2: two numbers that tell a row
    from others for the draws of sampling: a digest of what it says, and how many rows before it say the same. real_B: which rows are
    prompts, the first of all. first_B: the position of each row's first token, where it is not 0. end_B: the slot behind each row's
    last token, where rows are padded on the right.
    """

    tokens_BP: Array
    start_B: Array
    digest_B2: Array
    source_BM: Array | None
    source_mask_BM: Array | None
    real_B: Array
    first_B: Array | None = None
    end_B: Array | None = None


def as_rows(name: str, ids: Any, mask: Any = None) -> list[list[int]]:
    """Token lists of an array [B, L] or of lists, without what a mask hides.

    Raises:
      UserError: not whole numbers, not two-dimensional, or a mask of another shape, or one that hides a whole row.
    """
    found = _arrays(ids, np.integer)
    if found is None:
        raise UserError(f"{name} is no array [B, L] of token ids, nor a list of lists of them. Got {str(ids)[:80]}.")
    if mask is not None:
        keep = _arrays(mask, np.number, np.bool_)
        if keep is None or list(map(len, keep)) != list(map(len, found)):
            raise UserError(f"{name} has an attention mask of another shape: give one number for each token.")
        found = [row[kept > 0] for row, kept in zip(found, keep, strict=True)]
    rows = [row.tolist() for row in found]
    if not rows or not all(rows):
        raise UserError(
            f"{name} holds {'an empty row' if rows else 'no rows'}. Each row needs at min_length one token."
        )
    return rows


def source_rows(ids: Any, mask: Any) -> list[list[int]]:
    """Token lists for an encoder, HIDDEN added where a mask hides a token, but for those at the end; raises a UserError as `as_rows`."""
    as_rows("input_ids", ids, mask)  # which checks the mask
    found = []
    for row, keep in zip(as_rows("input_ids", ids), mask, strict=True):
        end = int(np.flatnonzero(np.asarray(keep) > 0)[-1]) + 1
        found.append([token if kept > 0 else HIDDEN + token for token, kept in zip(row[:end], keep[:end], strict=True)])
    return found


def unhidden(row: Sequence[int]) -> list[int]:
    """A row of `source_rows` with the tokens that its mask hides."""
    return [token if token > HIDDEN // 2 else token - HIDDEN for token in row]


def visible(row: Sequence[int]) -> list[int]:
    """A row of `source_rows` without what is hidden."""
    return [token for token in row if token > HIDDEN // 2]


def _arrays(rows: Any, *kinds: type) -> list[np.ndarray] | None:
    """Rows of numbers of some kinds, one array [L] each; None if there is anything else."""
    try:
        rows = rows if isinstance(rows, list | tuple) else np.asarray(rows)
        found = [np.asarray(row) for row in rows]
    except (TypeError, ValueError):  # no rows, or lists of different lengths in one
        return None

    def good(row: np.ndarray) -> bool:
        return row.ndim == 1 and (not row.size or any(np.issubdtype(row.dtype, kind) for kind in kinds))

    return found if all(map(good, found)) else None


def without_padding(rows: list[list[int]], pad_id: int | None, ends: Sequence[int]) -> list[list[int]]:
    """Rows that came without an attention mask, as transformers reads them: padding is what is filled up, unless it ends texts.

    A row of nothing else is left as it is.
    """
    if pad_id is None or pad_id in ends:
        return rows
    return [[token for token in row if token != pad_id] or row for row in rows]


def text_start(tokenizer: Tokenizer) -> int | None:
    """The token after which a causal model's texts begin: bos, or eos where there is none (GPT-2); None without either.

    Tokenizers that end each text with a special token are made for encoders, as are those that we train ourselves; causal models that
    learn with them see documents parted by the separator.
    """
    if uses_document_separator(tokenizer):
        return tokenizer.sep_id
    return next((tokenizer.roles[role] for role in ("bos", "eos") if role in tokenizer.roles), None)


def uses_document_separator(tokenizer: Tokenizer) -> bool:
    """Whether a causal model with this tokenizer reads the separator, and nothing else, before a text."""
    return tokenizer.adds_end_token


def make_prompts(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    sources: Sequence[Sequence[int]] | None = None,
    multiple: int = 1,
    min_length: int = 16,
    max_length: int = 0,
    buckets: bool = True,
    first: Sequence[int] | None = None,
) -> Prompts[np.ndarray]:
    """A batch of token lists.

    Args:
      rows: the prompts (of the decoder).
      pad_id: fills up.
      sources: of the encoder, which may have HIDDEN places.
      multiple: the number of rows is filled up to a multiple of it, the devices that share them.
      min_length: the shortest length that prompts are filled up to (an encoder-decoder's are short: 1).
      max_length: positions that the encoder has, where it has a table of them.
      buckets: False keeps lengths as they are.
      first: the position of each prompt's first token; None is 0.
    """
    count = len(rows)
    batch = round_up(bucket_size(count) if buckets else count, multiple)

    def size(rows: Any, min_length: int) -> int:
        return bucket_size(longest(rows), min_length) if buckets else longest(rows)

    width = size(rows, min_length if sources is None else 1)
    tokens_BP = np.full((batch, width), pad_id, np.int32)
    start_B = np.full(batch, width - 1, np.int32)  # a row that only fills up still sees one token
    for number, row in enumerate(rows):
        start_B[number] = width - len(row)
        tokens_BP[number, start_B[number] :] = row
    source_BM: np.ndarray | None = None
    mask_BM: np.ndarray | None = None
    if sources is not None:
        length = size(sources, min_length)
        source_BM = np.full((batch, min(length, max_length) if max_length else length), pad_id, np.int32)
        mask_BM = np.zeros_like(source_BM)
        mask_BM[:, 0] = 1
        for number, row in enumerate(sources):
            row_L = np.array(row, np.int64)
            there_L = row_L > HIDDEN // 2
            source_BM[number, : len(row)] = np.where(there_L, row_L, row_L - HIDDEN)
            mask_BM[number, : len(row)] = there_L
    said = [(*row, -1, *(visible(sources[number]) if sources is not None else ())) for number, row in enumerate(rows)]
    digest_B2 = np.zeros((batch, 2), np.uint32)
    digest_B2[:count] = row_digests(said)
    first_B = None if first is None else np.array([*first, *[0] * (batch - count)], np.int32)
    return Prompts(tokens_BP, start_B, digest_B2, source_BM, mask_BM, np.arange(batch) < count, first_B)


def first_positions(arch: Architecture, hidden: Sequence[int]) -> list[int] | None:
    """The position of the first token of each prompt that stands behind so much padding; None where all are 0."""
    if arch.prompt_positions == "rows":
        return [-arch.position_offset] * len(hidden)
    return list(hidden) if arch.prompt_positions == "slots" and any(hidden) else None


def row_digests(said: Sequence[Sequence[int]]) -> np.ndarray:
    """A digest of each row and the number of equal rows before it, [B, 2]."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = np.zeros((len(said), 2), np.uint32)
    for number, row in enumerate(map(tuple, said)):
        found[number] = zlib.crc32(np.asarray(row, "<i4").tobytes()), seen[row]
        seen[row] += 1
    return found


def longest(rows: Sequence[Sequence[int]]) -> int:
    return max(map(len, rows))

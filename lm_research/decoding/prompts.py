"""Batches of prompts of different lengths, padded on the left to one of few lengths, so that few shapes are compiled.

Legend: B rows, P slots of prompts, M tokens of the encoder's rows.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from lm_research.common.rounding import bucket_size, round_up
from lm_research.decoding.logits_processors import NO_TOKEN, Seen
from lm_research.errors import UserError
from lm_research.models.architecture import Architecture
from lm_research.tokenizers.base import Tokenizer

# Added to a masked token in an encoder's rows. The token is kept, because it shifts the positions of later tokens, and because
# encoders that count positions from their padding skip padding tokens only.
HIDDEN = -(2**40)
# Added to a token with global attention (LayerSpec.global_tokens).
GLOBAL = 2**40
MIN_LENGTH = 16  # tokens; shorter prompts are padded to as many


Array = TypeVar("Array", np.ndarray, jax.Array)


class Prompts(NamedTuple, Generic[Array]):
    """A batch of prompts: NumPy arrays on the host, JAX arrays in a program.

    Attributes:
      tokens_BP: token ids, padded on the left; the decoder's for encoder-decoders.
      start_B: first slot of each row's prompt.
      digest_B2: identity of each row for sampling: a digest of its tokens, and the number of equal rows before it.
      source_BM, source_mask_BM: the encoder's tokens, padded on the right, and 1 for real ones, 2 with global attention; None for decoders.
      real_B: which rows are prompts; they come first, the others pad the batch.
      first_B: position of each row's first token; None if all are 0.
      end_B: slot after each row's last token, if rows are padded on the right.
      seen: what logits processors see of the rows; None if that is what the model sees.
    """

    tokens_BP: Array
    start_B: Array
    digest_B2: Array
    source_BM: Array | None
    source_mask_BM: Array | None
    real_B: Array
    first_B: Array | None = None
    end_B: Array | None = None
    seen: Seen | None = None


class Rows(NamedTuple):
    """Token lists of prompts.

    Attributes:
      rows: the tokens that the model reads.
      seen: those that logits processors see: masked ones too, of which those at the end of a row come first.
      masked: how many masked tokens each row of `seen` begins with.
    """

    rows: list[list[int]]
    seen: list[list[int]]
    masked: list[int]

    @classmethod
    def plain(cls, rows: list[list[int]]) -> Rows:
        """Rows without masked tokens."""
        return cls(rows, rows, [0] * len(rows))

    @classmethod
    def given(cls, name: str, ids: Any, mask: Any = None) -> Rows:
        """Rows of an array or lists, of which `mask` is positive for real tokens. Args and errors are those of `as_rows`."""
        rows = as_rows(name, ids, mask)
        if mask is None:
            return cls.plain(rows)
        seen, masked = [], []
        for row, keep in zip(as_rows(name, ids), mask, strict=True):
            real = np.flatnonzero(np.asarray(keep) > 0)
            behind = len(row) - 1 - int(real[-1])
            seen.append(np.roll(np.array(row, object), behind).tolist())
            masked.append(int(real[0]) + behind)
        return cls(rows, seen, masked)


def as_rows(name: str, ids: Any, mask: Any = None) -> list[list[int]]:
    """Convert an array [B, L] or lists to token lists, without masked tokens.

    Args:
      name: name of the argument, for messages.
      ids: token ids.
      mask: of the same shape, positive for real tokens; None if all are real.

    Raises:
      UserError: ids are not integers or not two-dimensional, the mask has another shape, or a row has no token.
    """
    found = _arrays(ids, np.integer)
    if found is None:
        raise UserError(f"{name} is not an array [B, L] or a list of lists of token ids. Got {str(ids)[:80]}.")
    if mask is not None:
        keep = _arrays(mask, np.number, np.bool_)
        if keep is None or list(map(len, keep)) != list(map(len, found)):
            raise UserError(f"{name} and its attention mask have different shapes: give one number for each token.")
        found = [row[kept > 0] for row, kept in zip(found, keep, strict=True)]
    rows = [row.tolist() for row in found]
    if not rows or not all(rows):
        raise UserError(
            f"{name} holds {'an empty row' if rows else 'no rows'}. Each row needs at min_length one token."
        )
    return rows


def source_rows(ids: Any, mask: Any, chosen: Any = None) -> list[list[int]]:
    """Make token lists for an encoder: masked tokens get HIDDEN added, those at the end are dropped. Raises as `as_rows`.

    Args:
      ids: token ids.
      mask: of the same shape, positive for real tokens; None if all are real.
      chosen: of the same shape, positive for tokens with global attention, which get GLOBAL added; None if there are none.
    """
    rows = as_rows("input_ids", ids)
    masks = [[np.ones(len(row)) for row in rows] if mask is None else mask]
    masks.append([np.zeros(len(row)) for row in rows] if chosen is None else chosen)
    for one in masks:
        as_rows("input_ids", ids, one if one is masks[0] else [np.asarray(row) + 1 for row in one])  # checks the shapes
    found = []
    for row, keep, picked in zip(rows, *masks, strict=True):
        end = int(np.flatnonzero(np.asarray(keep) > 0)[-1]) + 1
        parts = zip(row[:end], keep[:end], picked[:end], strict=True)
        found.append([token + (HIDDEN if kept <= 0 else GLOBAL if pick > 0 else 0) for token, kept, pick in parts])
    return found


def unhidden(row: Sequence[int]) -> list[int]:
    """Undo HIDDEN and GLOBAL: the tokens of a row of `source_rows`, masked ones included."""
    return [(token + GLOBAL // 2) % GLOBAL - GLOBAL // 2 for token in row]


def visible(row: Sequence[int]) -> list[int]:
    """Drop the masked tokens of a row of `source_rows`."""
    return unhidden([token for token in row if token > HIDDEN // 2])


def _arrays(rows: Any, *kinds: type) -> list[np.ndarray] | None:
    """Convert rows to arrays [L] of numbers of these types; None if they are anything else."""
    try:
        rows = rows if isinstance(rows, list | tuple) else np.asarray(rows)
        found = [np.asarray(row) for row in rows]
    except (TypeError, ValueError):  # not rows, or lists of different lengths inside a row
        return None

    def good(row: np.ndarray) -> bool:
        return row.ndim == 1 and (not row.size or any(np.issubdtype(row.dtype, kind) for kind in kinds))

    return found if all(map(good, found)) else None


def padding_mask(rows: list[list[int]], pad_id: int | None, ends: Sequence[int]) -> list[list[bool]] | None:
    """Mask padding tokens of rows that came without an attention mask, as transformers does, unless they also end texts.

    Rows that consist of padding are not masked.
    """
    if pad_id is None or pad_id in ends:
        return None
    return [[token != pad_id for token in row] if set(row) != {pad_id} else [True] * len(row) for row in rows]


def text_start(tokenizer: Tokenizer) -> int | None:
    """Return the token that precedes a causal model's texts: bos, or eos if there is no bos (GPT-2); None without either.

    Tokenizers that end each text with a special token, as those trained by this library do, are made for encoders; causal models
    trained with them read documents divided by the separator, which is then returned.
    """
    if uses_document_separator(tokenizer):
        return tokenizer.sep_id
    return next((tokenizer.roles[role] for role in ("bos", "eos") if role in tokenizer.roles), None)


def uses_document_separator(tokenizer: Tokenizer) -> bool:
    """Whether causal models with this tokenizer read only the separator before a text, and no other special tokens."""
    return tokenizer.adds_end_token


def make_prompts(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    sources: Sequence[Sequence[int]] | None = None,
    multiple: int = 1,
    min_length: int = MIN_LENGTH,
    max_length: int = 0,
    first: Sequence[int] | None = None,
) -> Prompts[np.ndarray]:
    """Batch token lists; the number of rows and the lengths are rounded up to one of few sizes.

    Args:
      rows: the prompts (the decoder's, for encoder-decoders).
      pad_id: padding token.
      sources: rows of the encoder, which may have HIDDEN tokens; None for decoders.
      multiple: the number of rows is padded to a multiple of this, the number of devices that the batch is sharded over.
      min_length: shortest padded length of prompts; 1 for the decoder of an encoder-decoder.
      max_length: number of positions of the encoder; 0 for no limit.
      first: position of each prompt's first token; None for 0.
    """
    count = len(rows)
    batch = round_up(bucket_size(count), multiple)
    width = bucket_size(longest(rows), min_length if sources is None else 1)
    tokens_BP = np.full((batch, width), pad_id, np.int32)
    start_B = np.full(batch, width - 1, np.int32)  # padding rows attend to one token
    for number, row in enumerate(rows):
        start_B[number] = width - len(row)
        tokens_BP[number, start_B[number] :] = row
    source_BM: np.ndarray | None = None
    mask_BM: np.ndarray | None = None
    if sources is not None:
        length = bucket_size(longest(sources), min_length)
        source_BM = np.full((batch, min(length, max_length) if max_length else length), pad_id, np.int32)
        mask_BM = np.zeros_like(source_BM)
        mask_BM[:, 0] = 1
        for number, row in enumerate(sources):
            row_L = np.array(row, np.int64)
            source_BM[number, : len(row)] = unhidden(row)
            mask_BM[number, : len(row)] = (row_L > HIDDEN // 2).astype(np.int32) + (row_L > GLOBAL // 2)
    contents = [
        (*row, -1, *(visible(sources[number]) if sources is not None else ())) for number, row in enumerate(rows)
    ]
    digest_B2 = np.zeros((batch, 2), np.uint32)
    digest_B2[:count] = row_digests(contents)
    first_B = None if first is None else np.array([*first, *[0] * (batch - count)], np.int32)
    return Prompts(tokens_BP, start_B, digest_B2, source_BM, mask_BM, np.arange(batch) < count, first_B)


def seen_rows(prompts: Rows, sources: Rows | None, count: int) -> Seen:
    """Batch the token lists that logits processors see, padded with rows without tokens to `count`, for `Prompts.seen`."""

    def batch(rows: list[list[int]], least: int, right: bool) -> np.ndarray:
        found_BW = np.full((count, bucket_size(longest(rows), least)), NO_TOKEN, np.int32)
        for line, row in zip(found_BW, rows, strict=False):
            line[slice(len(line) - len(row), None) if right else slice(len(row))] = np.clip(row, NO_TOKEN, 2**31 - 1)
        return found_BW

    prompt_BW = batch(prompts.seen, MIN_LENGTH if sources is None else 1, True)
    counted_B = np.zeros(count, np.int32)
    for number, (row, masked) in enumerate(zip(prompts.seen, prompts.masked, strict=True)):
        counted_B[number] = prompt_BW.shape[1] - len(row) + masked
    source_BM = None if sources is None else batch(sources.seen, MIN_LENGTH, False)
    return Seen(prompt_BW, counted_B, source_BM)


def first_positions(arch: Architecture, hidden: Sequence[int]) -> list[int] | None:
    """Compute the position of each prompt's first token, given the padding before it; None if all are 0."""
    if arch.prompt_positions == "rows":
        return [-arch.position_offset] * len(hidden)
    return list(hidden) if arch.prompt_positions == "slots" and any(hidden) else None


def row_digests(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Compute a digest of each row and the number of equal rows before it, uint32 [B, 2]."""
    seen: Counter[tuple[int, ...]] = Counter()
    digest_B2 = np.zeros((len(rows), 2), np.uint32)
    for number, row in enumerate(map(tuple, rows)):
        digest_B2[number] = zlib.crc32(np.asarray(row, "<i4").tobytes()), seen[row]
        seen[row] += 1
    return digest_B2


def longest(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest row."""
    return max(map(len, rows))

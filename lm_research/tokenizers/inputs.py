"""Texts as rows of tokens, and rows as the arrays that a model takes.

Legend: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_research.common.texts import replace_surrogates
from lm_research.errors import TokenizerError
from tokenizers import Encoding

# Texts, or pairs of them.
Texts = list[str] | list[tuple[str, str]]


class Row(NamedTuple):
    """Ids of a text or a pair, and which of its two texts each is of (0 or 1)."""

    ids: list[int]
    type_ids: list[int]


def make_pairs(text: str | Sequence[str], text_pair: str | Sequence[str] | None) -> Texts:
    """The texts, or the pairs, that arguments of a tokenizer name, without halves of characters (texts.py).

    Raises:
      TokenizerError: they are no texts, or there are more first texts than second ones or the other way round.
    """
    first = [text] if isinstance(text, str) else list(text)
    second = [text_pair] if isinstance(text_pair, str) else text_pair if text_pair is None else list(text_pair)
    wrong = [type(value).__name__ for value in (*first, *(second or ())) if not isinstance(value, str)]
    if wrong:
        raise TokenizerError(f"A tokenizer takes a text or a list of texts, not a list with a {wrong[0]} in it.")
    first, second = replace_surrogates(first), replace_surrogates(second)
    if second is None:
        return first
    if len(first) != len(second) or isinstance(text, str) != isinstance(text_pair, str):
        raise TokenizerError(
            f"text has {len(first)} texts and text_pair {len(second)}: give two texts, or two lists of the same length."
        )
    return list(zip(first, second, strict=True))


def stack_rows(
    rows: Sequence[Row | Encoding], length: int | None, pad_id: int, left: bool, types: bool, offsets: bool
) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, and token_type_ids and offset_mapping on demand: int32 [B, L] ([B, L, 2] the last).

    Args:
      rows: B of them.
      length: to pad to at least; None when rows are not to be padded.
      pad_id: fills input_ids; everything else is filled with 0.
      left: whether padding goes before the tokens.
      types, offsets: whether to give these.

    Raises:
      TokenizerError: rows differ in length and may not be padded.
    """
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths, default=0)
    if length is None and len(set(lengths)) > 1:
        raise TokenizerError(
            f"The texts have {min(lengths)} to {longest} tokens, and arrays need rows of one length: pass padding=True (or "
            'padding="max_length", or one text at a time).'
        )
    length = max(longest, length or 0)
    shape = (len(rows), length)
    arrays = {"input_ids": np.full(shape, pad_id, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    arrays |= {"token_type_ids": np.zeros(shape, np.int32)} if types else {}
    arrays |= {"offset_mapping": np.zeros((*shape, 2), np.int32)} if offsets else {}
    for number, row in enumerate(rows):
        if not row.ids:
            continue
        place = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
        arrays["input_ids"][number, place] = row.ids
        arrays["attention_mask"][number, place] = 1
        if types:
            arrays["token_type_ids"][number, place] = row.type_ids
        if offsets and isinstance(row, Encoding):
            arrays["offset_mapping"][number, place] = row.offsets
    return arrays


def bert_rows(
    firsts: Sequence[list[int]],
    seconds: Sequence[list[int]] | None,
    frame: tuple[int, int] | None,
    limit: int | None,
) -> list[Row]:
    """Rows of texts or pairs, in BERT's form: cls, the text, sep, the second text, sep; of a pair the longer text is cut first.

    Args:
      firsts, seconds: their ids.
      frame: the ids of cls and sep; None puts none.
      limit: tokens of a row.
    """
    rows = []
    others = [[]] * len(firsts) if seconds is None else seconds
    special = 0 if frame is None else 2 + (seconds is not None)
    for first, other in zip(firsts, others, strict=True):
        excess = max(0, len(first) + len(other) + special - limit) if limit is not None else 0
        from_first = min(excess, max(0, len(first) - len(other)))
        from_other = min(excess - from_first, max(0, len(other) - len(first)))
        level = excess - from_first - from_other
        first = first[: len(first) - from_first - (level + 1) // 2]
        other = other[: len(other) - from_other - level // 2]
        if frame is not None:
            first, other = [frame[0], *first, frame[1]], other if seconds is None else [*other, frame[1]]
        rows.append(Row(first + other, [0] * len(first) + [1] * len(other)))
    return rows


def valid_ids(ids: Any, size: int) -> np.ndarray:
    """Those of a text's ids that are ids, from 0 to below `size`: int64 [L]. `ids` is an array, a list or an iterator, or one of them.

    Raises:
      TokenizerError: they are ids of several texts, or none at all.
    """
    try:
        row = np.atleast_1d(np.asarray(list(ids) if isinstance(ids, Iterator) else ids))
    except ValueError:  # rows of several lengths
        row = np.zeros((0, 0))
    if row.ndim != 1 or row.size and not np.issubdtype(row.dtype, np.number):
        raise TokenizerError(
            f"decode takes the ids of one text, not {str(ids)[:80]!r}; batch_decode takes those of several."
        )
    return row[(row >= 0) & (row < size)].astype(np.int64)

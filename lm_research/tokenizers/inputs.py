"""Token sequences of texts, and the padded arrays that a model takes.

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
    """Ids of a text or a pair, and the type of each (0 for the first text, 1 for the second)."""

    ids: list[int]
    type_ids: list[int]


def make_pairs(text: str | Sequence[str], text_pair: str | Sequence[str] | None) -> Texts:
    """Return a tokenizer's arguments as a list of texts or of pairs, unpaired surrogates replaced (texts.py).

    Raises:
      TokenizerError: a value is not a string, or the numbers of first and second texts differ.
    """
    first = [text] if isinstance(text, str) else list(text)
    second = [text_pair] if isinstance(text_pair, str) else text_pair if text_pair is None else list(text_pair)
    wrong = [type(value).__name__ for value in (*first, *(second or ())) if not isinstance(value, str)]
    if wrong:
        raise TokenizerError(f"A tokenizer takes a text or a list of texts, not a list that contains a {wrong[0]}.")
    first, second = replace_surrogates(first), replace_surrogates(second)
    if second is None:
        return first
    if len(first) != len(second) or isinstance(text, str) != isinstance(text_pair, str):
        raise TokenizerError(
            f"text has {len(first)} texts and text_pair has {len(second)}: give two texts, or two lists of the same length."
        )
    return list(zip(first, second, strict=True))


def stack_rows(
    rows: Sequence[Row | Encoding], length: int | None, pad_id: int, left: bool, types: bool, offsets: bool
) -> dict[str, np.ndarray]:
    """Stack sequences into int32 arrays [B, L]: input_ids, attention_mask, and optionally token_type_ids and offset_mapping [B, L, 2].

    Args:
      rows: B token sequences.
      length: minimum length to pad to; None if sequences may not be padded.
      pad_id: fills input_ids; the other arrays are filled with 0.
      left: whether padding precedes the tokens.
      types: whether to return token_type_ids.
      offsets: whether to return offset_mapping.

    Raises:
      TokenizerError: the sequences differ in length and may not be padded.
    """
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths, default=0)
    if length is None and len(set(lengths)) > 1:
        raise TokenizerError(
            f"The texts have {min(lengths)} to {longest} tokens, but an array needs sequences of the same length. Pass padding=True, "
            'padding="max_length", or one text at a time.'
        )
    length = max(longest, length or 0)
    shape = (len(rows), length)
    arrays = {"input_ids": np.full(shape, pad_id, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    arrays |= {"token_type_ids": np.zeros(shape, np.int32)} if types else {}
    arrays |= {"offset_mapping": np.zeros((*shape, 2), np.int32)} if offsets else {}
    for index, row in enumerate(rows):
        if not row.ids:
            continue
        span = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
        arrays["input_ids"][index, span] = row.ids
        arrays["attention_mask"][index, span] = 1
        if types:
            arrays["token_type_ids"][index, span] = row.type_ids
        if offsets and isinstance(row, Encoding):
            arrays["offset_mapping"][index, span] = row.offsets
    return arrays


def bert_rows(
    firsts: Sequence[list[int]],
    seconds: Sequence[list[int]] | None,
    frame: tuple[int, int] | None,
    limit: int | None,
) -> list[Row]:
    """Build token sequences in BERT's format: cls, the text, sep, the second text, sep.

    A pair that is too long loses tokens from its longer text until both are equally long, then from both in turn.

    Args:
      firsts: ids of the texts.
      seconds: ids of the second texts; None for single texts.
      frame: ids of cls and sep; None adds neither.
      limit: maximum length of a sequence; None does not truncate.
    """
    rows = []
    others = [[]] * len(firsts) if seconds is None else seconds
    special = 0 if frame is None else 2 + (seconds is not None)
    for first, other in zip(firsts, others, strict=True):
        excess = max(0, len(first) + len(other) + special - limit) if limit is not None else 0
        from_first = min(excess, max(0, len(first) - len(other)))
        from_other = min(excess - from_first, max(0, len(other) - len(first)))
        from_both = excess - from_first - from_other
        first = first[: len(first) - from_first - (from_both + 1) // 2]
        other = other[: len(other) - from_other - from_both // 2]
        if frame is not None:
            first, other = [frame[0], *first, frame[1]], other if seconds is None else [*other, frame[1]]
        rows.append(Row(first + other, [0] * len(first) + [1] * len(other)))
    return rows


def valid_ids(ids: Any, size: int) -> np.ndarray:
    """Return the ids of one text that are in [0, size), as int64 [L].

    Args:
      ids: an array, a list or an iterator of ids, or one id.
      size: number of ids.

    Raises:
      TokenizerError: `ids` has more than one dimension, or is not numeric.
    """
    try:
        row = np.atleast_1d(np.asarray(list(ids) if isinstance(ids, Iterator) else ids))
    except ValueError:  # sequences of different lengths
        row = np.zeros((0, 0))
    if row.ndim != 1 or row.size and not np.issubdtype(row.dtype, np.number):
        raise TokenizerError(
            f"decode takes the ids of one text, not {str(ids)[:80]!r}. Use batch_decode for several texts."
        )
    return row[(row >= 0) & (row < size)].astype(np.int64)

"""Rows of tokens as the arrays that a model takes.

Legend: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from lm_research.common.texts import whole
from lm_research.errors import TokenizerError


def pair_up(text: str | Sequence[str], text_pair: str | Sequence[str] | None) -> list[str] | list[tuple[str, str]]:
    """The texts, or the pairs, that arguments of a tokenizer name, without halves of characters (texts.py).

    Raises:
      TokenizerError: they are no texts, or there are more first texts than second ones or the other way round.
    """
    first = [text] if isinstance(text, str) else list(text)
    second = [text_pair] if isinstance(text_pair, str) else text_pair if text_pair is None else list(text_pair)
    wrong = [type(value).__name__ for value in (*first, *(second or ())) if not isinstance(value, str)]
    if wrong:
        raise TokenizerError(f"A tokenizer takes a text or a list of texts, not a list with a {wrong[0]} in it.")
    first, second = whole(first), whole(second)
    if second is None:
        return first
    if len(first) != len(second) or isinstance(text, str) != isinstance(text_pair, str):
        raise TokenizerError(
            f"text has {len(first)} texts and text_pair {len(second)}: give two texts, or two lists of the same length."
        )
    return list(zip(first, second, strict=True))


def stack_rows(
    rows: Sequence[Encoding], length: int | None, pad_id: int, left: bool, types: bool, offsets: bool
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
        if offsets:
            arrays["offset_mapping"][number, place] = row.offsets
    return arrays

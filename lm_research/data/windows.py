"""A question and a long context as rows of a model's length: windows of the context that overlap, each after the question.

Legend: L ids of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from lm_research.data.hf_tokenizer import HFTokenizer


class Window(NamedTuple):
    """One row.

    Attributes:
      ids: [L], with the family's special tokens.
      types: [L], 0 and 1 where the family tells the two texts apart, else 0.
      offsets: [L, 2], the characters [from, to) of the context that each token covers; -1 for all other tokens.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray


def context_rooms(tokenizer: HFTokenizer, questions: Sequence[str], max_length: int) -> list[int]:
    """Tokens that a row of max_length has left for the context beside each question; below 0 where even that is too long."""
    special = tokenizer.backend.num_special_tokens_to_add(True)
    encoded = tokenizer.backend.encode_batch(list(questions), add_special_tokens=False)
    return [max_length - special - len(question.ids) for question in encoded]


def windows(
    tokenizer: HFTokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> Iterator[list[Window]]:
    """The windows of each pair, first to last; neighbours have `stride` tokens of the context in common.

    Every question must leave room for more than `stride` tokens of its context (`context_rooms`).
    """
    with tokenizer._lock:  # truncation is a state of the backend
        tokenizer.backend.enable_truncation(max_length, stride=stride, strategy="only_second", direction="right")
        try:
            encodings = tokenizer.backend.encode_batch(list(zip(questions, contexts, strict=True)))
        finally:
            tokenizer.backend.no_truncation()
    for encoding in encodings:
        yield [_window(part, tokenizer.uses_types) for part in (encoding, *encoding.overflowing)]


def _window(encoding: tokenizers.Encoding, uses_types: bool) -> Window:
    ids = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    inside = np.array([number == 1 for number in encoding.sequence_ids], bool)
    types = np.array(encoding.type_ids, np.int32) if uses_types else np.zeros_like(ids)
    return Window(ids, types, np.where(inside[:, None], offsets, -1))

"""Texts that are longer than a model reads, as windows that overlap: of a context, each after its question, or of the words of a text.

Legend: L ids of a row, P places of a context, K lengths of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import tokenizers
from lm_research.tokenizers.base import Tokenizer


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


class WordWindow(NamedTuple):
    """Words [first, stop) of a text; of these, [own_first, own_stop) have more around them here than in any other window."""

    first: int
    stop: int
    own_first: int
    own_stop: int


def word_windows(sizes: Sequence[int], room: int, stride: int) -> list[WordWindow]:
    """Windows of whole words that hold at most `room` tokens; every word is one window's own.

    Args:
      sizes: tokens of each word, from 1 to room.
      stride: tokens that neighbors have in common, at most; half of the room if that is less.
    """
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    words, stride, first, spans = len(sizes), min(stride, room // 2), 0, []
    while True:
        stop = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
        spans.append((first, stop))
        if stop >= words:
            break
        shared, fits = np.searchsorted(ends, (ends[stop] - stride, ends[stop + 1] - room))  # and the next word fits
        first = max(first + 1, int(shared), int(fits))
    cuts = [0]
    for (_, stop), (first, _) in zip(spans, spans[1:], strict=False):
        middle = (
            ends[first] + ends[stop]
        ) / 2  # where as much stands to the left in the one as to the right in the other
        inside = (ends[first:stop] + ends[first + 1 : stop + 1]) / 2
        cuts.append(max(cuts[-1], first + int((inside <= middle).sum())))
    return [
        WordWindow(*span, *own) for span, own in zip(spans, zip(cuts, [*cuts[1:], words], strict=True), strict=True)
    ]


def max_context_tokens(tokenizer: Tokenizer, questions: Sequence[str], max_length: int) -> list[int]:
    """Tokens that a row of max_length has left for the context beside each question; below 0 where even that is too long."""
    special = tokenizer.num_special_tokens(pair=True)
    encoded = tokenizer.encodings(questions, add_special_tokens=False)
    return [max_length - special - len(question.ids) for question in encoded]


def windows(
    tokenizer: Tokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> Iterator[list[Window]]:
    """The windows of each pair, first to last; neighbors have `stride` tokens of the context in common.

    Every question must leave room for more than `stride` tokens of its context (`context_rooms`).
    """
    pairs = list(zip(questions, contexts, strict=True))
    encodings = tokenizer.encodings(pairs, max_length=max_length, stride=stride, strategy="only_second", side="right")
    for encoding in encodings:
        yield [_window(part, tokenizer.uses_types) for part in (encoding, *encoding.overflowing)]


def best_spans(
    start_P: np.ndarray,
    end_P: np.ndarray,
    longest: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
) -> Iterator[tuple[int, int, float]]:
    """(first place, last place, score) of the spans of at most `longest` of P places, the best first, of equals the one that begins first.

    The score is `combine` of what the first place has as a start and the last one as an end.
    """
    longest = min(longest, len(start_P))
    if not longest:
        return
    ends_PK = np.lib.stride_tricks.sliding_window_view(np.pad(end_P, (0, longest - 1)), longest)
    scores_PK = combine(start_P[:, None], ends_PK)
    scores_PK[np.add.outer(np.arange(len(start_P)), np.arange(longest)) >= len(start_P)] = -np.inf
    for best in np.argsort(-scores_PK, axis=None, kind="stable").tolist():
        first, more = divmod(best, longest)
        if scores_PK[first, more] == -np.inf:
            return
        yield first, first + more, float(scores_PK[first, more])


def without_space(text: str, start: int, end: int) -> int:
    """Where the characters [start, end) begin without white space before them: a space belongs to the token, not to what it stands for."""
    while start < end and text[start].isspace():
        start += 1
    return start


def _window(encoding: tokenizers.Encoding, uses_types: bool) -> Window:
    ids = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    inside = np.array([number == 1 for number in encoding.sequence_ids], bool)
    types = np.array(encoding.type_ids, np.int32) if uses_types else np.zeros_like(ids)
    return Window(ids, types, np.where(inside[:, None], offsets, -1))

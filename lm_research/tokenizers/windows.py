"""Overlapping windows of texts that are longer than a model's inputs: of a question's context, or of the words of a text.

Legend: L ids of a sequence, P positions in a context, K lengths of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import tokenizers
from lm_research.tokenizers.base import Tokenizer


class Window(NamedTuple):
    """A question with a window of its context.

    Attributes:
      ids: [L], with special tokens.
      types: [L], 0 for the question and 1 for the context if the tokenizer uses token types, else 0.
      offsets: [L, 2], the characters [start, end) of the context that each token covers; -1 for all other tokens.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray


class WordWindow(NamedTuple):
    """Words [first, stop) of a text; [own_first, own_stop) are those with more context here than in any other window."""

    first: int
    stop: int
    own_first: int
    own_stop: int


def word_windows(sizes: Sequence[int], max_tokens: int, stride: int) -> list[WordWindow]:
    """Divide a text into windows of whole words with at most `max_tokens` tokens; every word is owned by one window.

    Example: sizes [1, 1, 1, 1, 1, 1], max_tokens 4 and stride 2 give the windows [0, 4) and [2, 6); the first owns the words [0, 3).

    Args:
      sizes: number of tokens of each word, from 1 to max_tokens.
      max_tokens: maximum number of tokens of a window.
      stride: maximum number of tokens that neighboring windows share; at most half of max_tokens is used.
    """
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    words, stride, first, spans = len(sizes), min(stride, max_tokens // 2), 0, []
    while True:
        stop = int(np.searchsorted(ends, ends[first] + max_tokens, side="right")) - 1
        spans.append((first, stop))
        if stop >= words:
            break
        # The next window shares at most `stride` tokens, and its first new word fits.
        shared, fits = np.searchsorted(ends, (ends[stop] - stride, ends[stop + 1] - max_tokens))
        first = max(int(shared), int(fits))
    cuts = [0]
    for (_, stop), (first, _) in zip(spans, spans[1:], strict=False):
        middle = (ends[first] + ends[stop]) / 2  # of the overlap: words before it have more context in the first window
        centers = (ends[first:stop] + ends[first + 1 : stop + 1]) / 2
        cuts.append(max(cuts[-1], first + int((centers <= middle).sum())))
    return [
        WordWindow(*span, *own) for span, own in zip(spans, zip(cuts, [*cuts[1:], words], strict=True), strict=True)
    ]


def max_context_tokens(tokenizer: Tokenizer, questions: Sequence[str], max_length: int) -> list[int]:
    """Return how many context tokens fit next to each question in max_length tokens; negative if the question is too long."""
    special = tokenizer.num_special_tokens(pair=True)
    encoded = tokenizer.encodings(questions, add_special_tokens=False)
    return [max_length - special - len(question.ids) for question in encoded]


def windows(
    tokenizer: Tokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> Iterator[list[Window]]:
    """Yield the windows of each pair in order; neighbors share `stride` tokens of the context.

    Every question must leave space for more than `stride` tokens of its context (`max_context_tokens`).
    """
    pairs = list(zip(questions, contexts, strict=True))
    encodings = tokenizer.encodings(pairs, max_length=max_length, stride=stride, strategy="only_second", side="right")
    for encoding in encodings:
        yield [_window(part, tokenizer.uses_types) for part in (encoding, *encoding.overflowing)]


def best_spans(
    start_P: np.ndarray,
    end_P: np.ndarray,
    max_length: int,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
) -> Iterator[tuple[int, int, float]]:
    """Yield (first position, last position, score) of spans, the best first; ties go to the span that starts first.

    Args:
      start_P: score of each position as a start.
      end_P: score of each position as an end.
      max_length: maximum number of positions in a span.
      combine: gives a span's score from the score of its start and that of its end.
    """
    max_length = min(max_length, len(start_P))
    if not max_length:
        return
    ends_PK = np.lib.stride_tricks.sliding_window_view(np.pad(end_P, (0, max_length - 1)), max_length)
    scores_PK = combine(start_P[:, None], ends_PK)
    scores_PK[np.add.outer(np.arange(len(start_P)), np.arange(max_length)) >= len(start_P)] = -np.inf
    for best in np.argsort(-scores_PK, axis=None, kind="stable").tolist():
        first, extra = divmod(best, max_length)
        if scores_PK[first, extra] == -np.inf:
            return
        yield first, first + extra, float(scores_PK[first, extra])


def without_space(text: str, start: int, end: int) -> int:
    """Return `start` moved past white space in the characters [start, end); a token's leading space is not part of an answer."""
    while start < end and text[start].isspace():
        start += 1
    return start


def _window(encoding: tokenizers.Encoding, uses_types: bool) -> Window:
    ids = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    inside = np.array([number == 1 for number in encoding.sequence_ids], bool)
    types = np.array(encoding.type_ids, np.int32) if uses_types else np.zeros_like(ids)
    return Window(ids, types, np.where(inside[:, None], offsets, -1))

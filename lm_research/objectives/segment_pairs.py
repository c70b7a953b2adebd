"""Segments for masked language modeling: one per row, or pairs that may or may not be consecutive, cut from the documents of a store.

A document's sentences are grouped once into chunks that fill a row. An example is a chunk, cut anew each epoch into
A and B at a random sentence boundary. For next-sentence prediction (Devlin et al. 2018, section 3.1) B is replaced half of
the time by text from another document; for sentence order (Lan et al. 2019, section 3.1) A and B change places. Some
examples are cut to a random shorter length.

Examples follow the first paper's released data generator, with one difference. That generator returns the unused half of a chunk
whose B was replaced to its stream, which only a sequential reader can do; here another epoch's cut reads it.

Legend: B rows, n some of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.data.stateless_rng import uniform
from lm_research.data.store import TokenStore
from lm_research.objectives.ragged import ragged, ragged_uniform

# Numbers of the draws of an example's random stream; those of truncation follow, and then those of the masks.
SHORT, SHORT_LENGTH, CUT, SWITCH, OTHER_DOCUMENT, OTHER_SENTENCE, TRUNCATE = range(7)


def group_sentences(store: TokenStore, max_length: int) -> np.ndarray:
    """Group each document's sentences into chunks [n, 3] of (document, first sentence, sentence after the last).

    Sentences are added until their tokens reach `max_length` (the last may exceed it and is truncated later). If a document's last
    chunk would have a single sentence, it also takes the last one of the chunk before it, so that it can be a pair.

    Example: a document with sentences of 4, 3, 5, 2 and 6 tokens and max_length 7 gives (0, 0, 2), (0, 2, 4) and (0, 3, 5).
    """
    sentence_starts, documents = np.asarray(store.sentence_starts), np.asarray(store.document_starts)
    document, start, end = np.arange(len(documents) - 1), documents[:-1], documents[1:]
    first, chunks = start, []
    while len(document):  # the next chunk of every document that has one
        stop = np.minimum(np.searchsorted(sentence_starts, sentence_starts[start] + max_length), end)
        overlap = (stop - start == 1) & (stop == end) & (start > first)
        chunks.append(np.stack([document, start - overlap, stop], axis=1))
        more = stop < end
        document, start, end, first = document[more], stop[more], end[more], first[more]
    all_chunks = np.concatenate(chunks)
    return all_chunks[np.argsort(all_chunks[:, 2])]


class Segments(NamedTuple):
    """Segments of n rows: where A and B begin in a store's tokens, their lengths, and whether B is not the text that follows A."""

    start_a: np.ndarray
    length_a: np.ndarray
    start_b: np.ndarray
    length_b: np.ndarray
    switched: np.ndarray


class PairReader:
    """Cuts chunks into segments.

    Args:
      store: the tokens.
      max_length: tokens of A and B together.
      pairs: "next_sentence", "sentence_order", or "none" (A only).
      short_seq_prob: fraction of rows with a shorter maximum, drawn uniformly from 2, ..., max_length.
    """

    def __init__(self, store: TokenStore, max_length: int, pairs: str, short_seq_prob: float) -> None:
        self.store, self.max_length, self.pairs, self.short_seq_prob = store, max_length, pairs, short_seq_prob
        self.chunks = group_sentences(store, max_length)

    def chunk_lengths(self) -> np.ndarray:
        """Count the tokens of each chunk, [chunks]; those past `max_length` are cut off."""
        starts = np.asarray(self.store.sentence_starts)
        return starts[self.chunks[:, 2]] - starts[self.chunks[:, 1]]

    def read(self, chunk: np.ndarray, keys: np.ndarray) -> Segments:
        """Cut chunks [n] into segments, with draws from the streams of `keys` [n]."""
        document, start, stop = self.chunks[chunk].T
        draws = uniform(keys, TRUNCATE).T
        short = draws[SHORT] < self.short_seq_prob
        length = np.where(short, 2 + (draws[SHORT_LENGTH] * (self.max_length - 1)).astype(np.int64), self.max_length)
        stop = np.where(short, self._reach(start, stop, length), stop)
        from_token, to_token = self.store.sentence_starts[start], self.store.sentence_starts[stop]
        if self.pairs == "none":
            nothing = np.zeros_like(start)
            return Segments(
                from_token, np.minimum(to_token - from_token, length), nothing, nothing, nothing.astype(bool)
            )
        cut = self.store.sentence_starts[start + 1 + (draws[CUT] * (stop - start - 1)).astype(np.int64)]
        switched = draws[SWITCH] < 0.5
        if self.pairs == "sentence_order":
            # A single sentence is cut inside. If it has only one token, B stays empty.
            lone = stop - start == 1
            inside = from_token + 1 + (draws[CUT] * (to_token - from_token - 1)).astype(np.int64)
            cut = np.where(lone, inside, cut)
            segments = self._truncate(
                Segments(from_token, cut - from_token, cut, to_token - cut, switched), length, keys
            )
            a, b = (segments.start_a, segments.length_a), (segments.start_b, segments.length_b)
            sides = zip((*a, *b), (*b, *a), strict=True)
            start_a, length_a, start_b, length_b = (np.where(switched, second, first) for first, second in sides)
            return Segments(start_a, length_a, start_b, length_b, switched)
        switched = switched | (stop - start == 1)
        other_start, other_length = self._other(document, draws, np.maximum(1, length - (cut - from_token)))
        start_b, length_b = np.where(switched, other_start, cut), np.where(switched, other_length, to_token - cut)
        return self._truncate(Segments(from_token, cut - from_token, start_b, length_b, switched), length, keys)

    def _other(self, document: np.ndarray, draws: np.ndarray, min_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose whole sentences of another document with at least `min_tokens` tokens, if it has that many; returns start and length.

        Sentences are whole so that a random B is truncated in the same way as a true one; otherwise its end would reveal the label.
        """
        count = self.store.num_documents
        other = (draws[OTHER_DOCUMENT] * (count - 1)).astype(np.int64)
        other += (other >= document) & (count > 1)  # a single document is its own replacement
        first, end = self.store.document_starts[other], self.store.document_starts[other + 1]
        start = first + (draws[OTHER_SENTENCE] * (end - first)).astype(np.int64)
        from_token = self.store.sentence_starts[start]
        return from_token, self.store.sentence_starts[self._reach(start, end, min_tokens)] - from_token

    def _reach(self, start: np.ndarray, end: np.ndarray, min_tokens: np.ndarray) -> np.ndarray:
        """Find the first sentence boundary with at least `min_tokens` tokens between `start` and it; at most `end`."""
        starts = self.store.sentence_starts
        return np.minimum(end, np.searchsorted(starts, starts[start] + min_tokens))

    def _truncate(self, segments: Segments, max_length: np.ndarray, keys: np.ndarray) -> Segments:
        """Shorten the longer segment token by token until both fit, at its front or back at random.

        Example: A of 9 and B of 5 tokens with max_length 8 lose 6 tokens. A gives 4 until both have 5; then B and A give one each.
        """
        start_a, a, start_b, b, switched = segments
        excess = np.maximum(0, a + b - max_length)
        # The result of the paper's loop: the longer segment is cut until both are equal, then they alternate, B first.
        from_a = np.minimum(excess, np.maximum(0, a - b))
        from_b = np.minimum(excess, np.maximum(0, b - a))
        level = excess - from_a - from_b
        from_a, from_b = from_a + level // 2, from_b + (level + 1) // 2
        from_front = ragged_uniform(keys, excess, TRUNCATE) < 0.5
        row, offset = ragged(excess)
        is_b = offset >= from_a[row]
        counts = np.bincount(2 * row + is_b, weights=from_front, minlength=2 * len(excess)).astype(np.int64)
        return Segments(start_a + counts[::2], a - from_a, start_b + counts[1::2], b - from_b, switched)

"""Encode documents into token ids, sentence by sentence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lm_research.common.sentences import split_documents
from lm_research.data.store import Piece
from lm_research.tokenizers.base import Tokenizer


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer, keep_newlines: bool, source: int = 0) -> Piece:
    """Encode documents as one piece of a store; documents without any token are left out.

    Args:
      documents: texts; their sentences and ids are held in memory.
      tokenizer: encodes each sentence separately.
      keep_newlines: see sentences.py.
      source: the source of the piece.
    """
    sentences, counts = split_documents(documents, keep_newlines)
    opening = np.zeros(len(sentences), bool)
    opening[(np.cumsum(counts) - counts)[counts > 0]] = True
    if keep_newlines and tokenizer.adds_space:  # the added space belongs only to the start of a document
        return _piece(*_encode_continued(sentences, opening, tokenizer), counts, source)
    # Sentencepiece and WordPiece restore the space between sentences when they decode; byte-level tokenizers do not.
    joined = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("b")])
    if not keep_newlines and joined == "ab":
        sentences = [text if opens else " " + text for text, opens in zip(sentences, opening, strict=True)]
    return _piece(*tokenizer.encode_flat(sentences), counts, source)


def _encode_continued(
    sentences: Sequence[str], opening: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Encode as `encode_flat` does, but treat sentences inside a document as continuations of the sentence before."""
    rows: list[list[int]] = [[]] * len(sentences)
    for encode, chosen in ((tokenizer.encode_batch, opening), (tokenizer.encode_after, ~opening)):
        places = np.flatnonzero(chosen).tolist()
        for place, ids in zip(places, encode([sentences[place] for place in places]), strict=True):
            rows[place] = ids
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _piece(tokens: np.ndarray, lengths: np.ndarray, counts: np.ndarray, source: int) -> Piece:
    """Build a piece without empty sentences and documents."""
    if len(lengths) and not lengths.all():
        filled = np.concatenate([[0], np.cumsum(lengths > 0)])
        ends = np.cumsum(counts)
        counts = filled[ends] - filled[ends - counts]
    return Piece(tokens, lengths[lengths > 0], counts[counts > 0], source)

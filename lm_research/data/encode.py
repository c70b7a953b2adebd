"""Documents to token ids, a sentence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_research.data.sentences import split_documents
from lm_research.data.store import Piece
from lm_research.data.tokenizer import TextTokenizer


def encode_documents(documents: Sequence[str], tokenizer: TextTokenizer, keep_newlines: bool, source: int = 0) -> Piece:
    """The ids of all documents in one piece of a store; documents without a token are left out.

    Args:
      documents: texts; memory for their ids and sentences is needed.
      tokenizer: makes the ids of each sentence on its own.
      keep_newlines: see sentences.py.
      source: for the piece.
    """
    sentences, counts = split_documents(documents, keep_newlines)
    # Sentencepiece and WordPiece put the space between sentences back themselves; byte-level tokenizers do not.
    joined = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("b")])
    if not keep_newlines and joined == "ab":
        opening = set((np.cumsum(counts) - counts).tolist())
        sentences = [text if number in opening else " " + text for number, text in enumerate(sentences)]
    tokens, lengths = tokenizer.encode_flat(sentences)
    if len(lengths) and not lengths.all():
        filled = np.concatenate([[0], np.cumsum(lengths > 0)])
        ends = np.cumsum(counts)
        counts = filled[ends] - filled[ends - counts]
    return Piece(tokens, lengths[lengths > 0], counts[counts > 0], source)

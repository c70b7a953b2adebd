"""WikiText-2's numbers of tokens and its vocabulary, by tokenizer.type=word."""

from __future__ import annotations

import pathlib

from experiments.results.row import Figure, Row, public
from lm_research.config import resolve
from lm_research.data.encode import encode_documents
from lm_research.data.sources import read_documents
from lm_research.tokenizers.word_vocabulary import make_word_tokenizer

COUNTS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
VOCABULARY = 33_278


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count the words of the training part, and encode all parts as single documents."""
    settings = {"type": "word", "vocab_size": VOCABULARY, "keep_newlines": True}
    config = resolve({"tokenizer": settings, "data": {"document_separator": "file"}})
    files = {part: str(public(f"lm/wikitext2/wiki.{part}.tokens.xz")) for part in COUNTS}
    texts = {part: list(read_documents(file, config.data)) for part, file in files.items()}
    tokenizer = make_word_tokenizer(texts["train"], config.tokenizer)
    pieces = {part: encode_documents(documents, tokenizer, keep_newlines=True) for part, documents in texts.items()}
    figures = [Figure(f"tokens, {part}", len(pieces[part].tokens), count, 0) for part, count in COUNTS.items()]
    return [*figures, Figure("vocabulary", tokenizer.size, VOCABULARY, 0)]


ROW = Row(
    title="WikiText-2's numbers of tokens",
    source="Merity et al. 2016, table of statistics",
    why="Equal: words between spaces, and <eos> at the end of every line, empty lines included. The vocabulary has every word.",
    measure=measure,
)

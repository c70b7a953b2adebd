"""N-gram models of WikiText-2's words."""

from __future__ import annotations

import pathlib

import numpy as np

from experiments.results.row import MEMORY, Figure, Row, public
from lm_research.config import resolve
from lm_research.data.encode import encode_documents
from lm_research.data.ngram import Trigrams
from lm_research.data.sources import read_documents
from lm_research.tokenizers.word_vocabulary import make_word_tokenizer

LSTM = 99.3


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count the training part's trigrams, and compute the perplexity of all tokens of the held-out parts."""
    settings = {"type": "word", "vocab_size": 33_278, "keep_newlines": True}
    config = resolve({"tokenizer": settings, "data": {"document_separator": "file"}})
    files = {part: str(public(f"lm/wikitext2/wiki.{part}.tokens.xz")) for part in ("train", "valid", "test")}
    texts = {part: list(read_documents(file, config.data)) for part, file in files.items()}
    tokenizer = make_word_tokenizer(texts["train"], config.tokenizer)
    ids = {part: encode_documents(one, tokenizer, keep_newlines=True).tokens for part, one in texts.items()}
    model = Trigrams([ids["train"]], tokenizer.size)
    figures = []
    for part in ("test", "valid"):
        perplexity = float(np.exp(-np.log(model.probabilities([ids[part]])).mean()))
        figures.append(
            Figure(f"perplexity of Kneser-Ney trigrams, {part}", perplexity, LSTM, 0.05, MEMORY, at_most=True)
        )
    return figures


ROW = Row(
    title="WikiText-2: Kneser-Ney trigrams of words",
    source="Grave et al. 2016, from memory: test perplexity 99.3 of an LSTM. No published n-gram model of this corpus is known here",
    why="Trigrams see two words, the LSTM all. This row is the floor for lm_wikitext2: a model above its perplexity has learned too little.",
    measure=measure,
)

"""Minimal pairs by Kneser-Ney trigrams of ten million words."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np

from experiments.results import babylm
from experiments.results.row import COMPUTED, READ, Figure, Row
from experiments.results.training import Published, figure
from lm_research.config import resolve
from lm_research.data.ngram import Trigrams
from lm_research.evaluation.scorers import MinimalPairScorer
from lm_research.tokenizers.word_vocabulary import make_word_tokenizer

_WORD = re.compile(r"[\w'-]+|[^\w\s]")
PEERS = {
    "blimp": ("the 5-gram of BLiMP's paper", Published(61.24, 0.05, READ, at_least=True)),
    "zorro": ("chance", Published(50.0, 0.05, COMPUTED, at_least=True)),
}


def words(texts: list[str]) -> list[str]:
    """Put texts in lower case, with spaces between words and marks; empty ones are left out."""
    found = (" ".join(_WORD.findall(text.lower())) for text in texts)
    return [text for text in found if text]


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count the trigrams of words in lower case, and compare the probabilities of each pair."""
    babylm.pairs(folder)
    documents = babylm.corpus(folder).read_text(encoding="utf-8").splitlines()
    lines = words([line for document in documents for line in json.loads(document)["text"].splitlines()])
    tokenizer = make_word_tokenizer(lines, resolve({"tokenizer": {"type": "word", "vocab_size": 100_000}}).tokenizer)
    model = Trigrams([np.array(ids) for ids in tokenizer.encode_batch(lines)], tokenizer.size)
    figures = []
    for name, (peer, published) in PEERS.items():
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        columns = {}
        for side in ("good", "bad"):
            ids = [
                np.array(one)
                for one in tokenizer.encode_batch(words([record[f"sentence_{side}"] for record in records]))
            ]
            ends = np.cumsum([len(one) for one in ids])
            columns[f"{side}_nats"] = [part.sum() for part in np.split(np.log(model.probabilities(ids)), ends[:-1])]
            columns[f"{side}_tokens"] = [len(one) for one in ids]
        pairs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        accuracy = 100 * MinimalPairScorer(pairs, ()).score_all()["accuracy"]
        figures.append(figure(f"{name}: accuracy x 100, beside {peer}", [accuracy], published))
    return figures


ROW = Row(
    title="BLiMP and Zorro by Kneser-Ney trigrams of ten million words",
    source="alexwarstadt/blimp at 3e56b06: 61.24, a 5-gram of the English Gigaword (3.1 billion words). No published n-gram model of Zorro is known here",
    why="The floor for babylm_gpt2 and babylm_roberta. Words are in lower case, and a pair is right if the acceptable sentence is more probable; trigrams see two words, and a "
    "three-hundredth of the 5-gram's text.",
    measure=measure,
)

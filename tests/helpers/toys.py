"""Models small enough to try every text: two layers, eight tokens; and their outputs, run without a cache.

Legend: L length, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helpers import tiny
from lm_research.models.definition import ModelDefinition, define
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.base import Tokenizer

VOCAB = 8


class ByteTokenizer(Tokenizer):
    """Token n is byte n; the last id ends a text."""

    roles = {"eos": 256}
    size = 257
    adds_end_token = False

    def __call__(self, texts: str | Sequence[str], **options: Any) -> dict[str, np.ndarray]:
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        width = max(map(len, rows))
        ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
        mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)
        return {"input_ids": ids, "attention_mask": mask}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.decode([token]) for token in ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def definition(vocab: int = VOCAB, **changes: Any) -> ModelDefinition:
    plain = tiny.model("gpt2")
    return define(plain.arch.replace(vocab_size=vocab, **{"max_length": 32, **changes}), plain.head)


def language_model(
    vocab: int = VOCAB, seed: int = 0, scale: float = 0.5, layers: Mapping[str, Any] = {}, **options: Any
) -> LanguageModel:
    """A causal model; `layers` changes its LayerSpecs, and options are those of LanguageModel, `tokenizer` or `config`."""
    model = definition(vocab)
    model = define(model.arch.with_layers(**layers), model.head) if layers else model
    config = options.pop("config", {})
    return LanguageModel(model, tiny.random_params(model, seed, scale), "gpt2", config, **options)


class Exact:
    """A model run over whole texts, each just once."""

    def __init__(self, lm: LanguageModel, length: int = 32) -> None:
        self.length = length

        def run(params: Any, tokens_BL: Any) -> Any:
            model = lm.definition.bind(params)
            x_BLD = model.decoder(tokens_BL)
            return model.predict_tokens(x_BLD).logits(), x_BLD

        self._run = functools.partial(tiny.jit(run), lm.params)
        self._seen: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [L, V] and final states [L, D]."""
        key = tuple(int(token) for token in tokens)
        if key not in self._seen:
            row = np.zeros((1, self.length), np.int32)
            row[0, : len(key)] = key
            logits, states = self._run(row)
            self._seen[key] = np.asarray(logits)[0, : len(key)], np.asarray(states)[0, : len(key)]
        return self._seen[key]

    def next(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-probabilities [V] of the next token."""
        logits = self(tokens)[0][-1].astype(np.float64)
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    def score(self, prompt: Sequence[int], text: Sequence[int]) -> float:
        """Log-probability of a text after a prompt."""
        return sum(self.next([*prompt, *text[:place]])[token] for place, token in enumerate(text))


def all_texts(length: int, vocab: int = VOCAB) -> list[tuple[int, ...]]:
    return list(itertools.product(range(vocab), repeat=length))

"""Predictions of a masked language model for hidden words, shown during training.

Legend: B examples, L length, T best tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm_research.data.store import TokenStore
from lm_research.models.definition import ModelDefinition
from lm_research.parallel.batches import to_host
from lm_research.parallel.rules import replicated
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Gap:
    """A token sequence and the position of the token to hide."""

    tokens: Sequence[int]
    position: int


MAX_SHOWN = 32  # tokens of the longest sentence to show
MIN_WORD_STARTS = 0.25  # fraction of tokens that begin a word, below which a text is assumed to have no spaces


def find_gaps(store: TokenStore, tokenizer: Tokenizer, count: int, length: int) -> list[Gap]:
    """Choose a gap in each of `count` sentences spread over a store: a one-token word near the middle.

    In text without spaces (Chinese, Japanese, Thai), any token of at least two letters qualifies.
    """
    gaps = []
    for start in np.linspace(0, store.num_sentences, count, endpoint=False).astype(int):
        for sentence in range(start, store.num_sentences):
            first, end = (int(x) for x in store.sentence_starts[sentence : sentence + 2])
            tokens = np.asarray(store.tokens[first:end])[: length - 2].astype(int)
            places = np.flatnonzero(_words(tokenizer, tokens))
            if 8 <= len(tokens) <= MAX_SHOWN and len(places):
                middle = int(places[np.abs(places - len(tokens) // 2).argmin()])
                gaps.append(Gap(tokens.tolist(), middle))
                break
    return gaps


def _words(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """Find tokens that are whole words of more than one letter, bool [L]."""
    begins = tokenizer.starts_word[tokens]
    if begins.mean() < MIN_WORD_STARTS:
        texts = [tokenizer.decode([token]).strip() for token in tokens.tolist()]
        return np.array([len(text) > 1 and text.isalpha() for text in texts])
    # Both the token and its successor begin a word, and the token has at least three bytes besides the word marker.
    return np.append(begins[:-1] & begins[1:] & (tokenizer.token_bytes[tokens[:-1]] > 3), False)


class MaskFiller:
    """Predicts hidden tokens of sentences up to a fixed length; compiled once."""

    def __init__(self, definition: ModelDefinition, tokenizer: Tokenizer, length: int, best: int = 3) -> None:
        self.tokenizer, self.length = tokenizer, length

        def predict(params: Any, tokens_BL: jax.Array, segments_BL: jax.Array, positions_B: jax.Array) -> Any:
            model = definition.bind(params)
            x_BLD = model.reader(tokens_BL, segments_BL)
            logits_B1V = model.predict_tokens(x_BLD, positions_B[:, None]).logits()
            return jax.lax.top_k(jax.nn.softmax(logits_B1V[:, 0, : tokenizer.size]), best)

        mesh = jax.sharding.get_mesh()  # of a training run, where each process needs all rows of the output
        self._predict = jax.jit(predict, out_shardings=None if mesh.empty else replicated(mesh))

    def __call__(self, params: Any, gaps: Sequence[Gap]) -> list[str]:
        """Format each gap as the sentence with its hidden word in brackets, and the most likely tokens with probabilities."""
        if not gaps:
            return []
        role = self.tokenizer
        tokens_BL = np.full((len(gaps), self.length), role.pad_id, np.int32)
        for row, gap in zip(tokens_BL, gaps, strict=True):
            sentence = [role.cls_id, *gap.tokens, role.sep_id]
            row[: len(sentence)] = sentence
            row[gap.position + 1] = role.mask_id
        segments_BL = (tokens_BL != role.pad_id).astype(np.int32)
        positions_B = np.asarray([gap.position + 1 for gap in gaps], np.int32)
        probs_BT, best_BT = to_host(self._predict(params, tokens_BL, segments_BL, positions_B))
        lines = []
        for gap, probs_T, best_T in zip(gaps, probs_BT, best_BT, strict=True):
            guesses = "   ".join(
                f"{role.decode([int(token)]) or role.pieces([int(token)])[0]} {prob:.0%}"
                for token, prob in zip(best_T, probs_T, strict=True)
            )
            before, after = role.decode(gap.tokens[: gap.position]), role.decode(gap.tokens[gap.position + 1 :])
            hidden = role.decode([gap.tokens[gap.position]]).strip()
            lines.append(f"{before} [{hidden}] {after}\n    -> {guesses}")
        return lines

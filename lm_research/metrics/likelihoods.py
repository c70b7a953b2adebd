"""How likely texts are to a language model: of a sample, of all its tokens, words or bytes together. Minimal pairs: which is likelier."""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric


@metric("bits_per_byte", higher_is_better=False, kind="likelihoods")
def bits_per_byte(nats: np.ndarray, bytes: np.ndarray) -> float:
    return -nats.sum() / np.log(2) / bytes.sum()


@metric("perplexity", higher_is_better=False, kind="likelihoods")
def perplexity(nats: np.ndarray, tokens: np.ndarray) -> float:
    return np.exp(-nats.sum() / tokens.sum())


@metric("word_perplexity", higher_is_better=False, kind="likelihoods")
def word_perplexity(nats: np.ndarray, words: np.ndarray) -> float:
    return np.exp(min(700.0, -nats.sum() / words.sum()))


@metric("accuracy", higher_is_better=True, kind="minimal_pairs", is_mean=True)
def accuracy(good_nats: np.ndarray, bad_nats: np.ndarray) -> np.ndarray:
    """Whether the acceptable sentence is the likelier one."""
    return good_nats - bad_nats > 0


@metric("accuracy_per_token", higher_is_better=True, kind="minimal_pairs", is_mean=True)
def accuracy_per_token(
    good_nats: np.ndarray, bad_nats: np.ndarray, good_tokens: np.ndarray, bad_tokens: np.ndarray
) -> np.ndarray:
    """Whether its tokens are, on average."""
    return good_nats / good_tokens - bad_nats / bad_tokens > 0

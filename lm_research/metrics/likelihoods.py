"""Likelihood of texts under a language model, per token, word or byte, and accuracy on minimal pairs."""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric


@metric("bits_per_byte", higher_is_better=False, kind="likelihoods")
def bits_per_byte(nats: np.ndarray, bytes: np.ndarray) -> float:
    """Negative log2-likelihood of all texts divided by their UTF-8 bytes."""
    return -nats.sum() / np.log(2) / bytes.sum()


@metric("perplexity", higher_is_better=False, kind="likelihoods")
def perplexity(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Perplexity per token over all texts."""
    return np.exp(-nats.sum() / tokens.sum())


@metric("word_perplexity", higher_is_better=False, kind="likelihoods")
def word_perplexity(nats: np.ndarray, words: np.ndarray) -> float:
    """Perplexity per white-space separated word over all texts, limited to exp(700)."""
    return np.exp(min(700.0, -nats.sum() / words.sum()))


@metric("accuracy", higher_is_better=True, kind="minimal_pairs", is_mean=True)
def accuracy(good_nats: np.ndarray, bad_nats: np.ndarray) -> np.ndarray:
    """Whether the acceptable sentence is more likely than the other one."""
    return good_nats - bad_nats > 0


@metric("accuracy_per_token", higher_is_better=True, kind="minimal_pairs", is_mean=True)
def accuracy_per_token(
    good_nats: np.ndarray, bad_nats: np.ndarray, good_tokens: np.ndarray, bad_tokens: np.ndarray
) -> np.ndarray:
    """Whether the acceptable sentence has the higher mean log-likelihood per token."""
    return good_nats / good_tokens - bad_nats / bad_tokens > 0

"""The traditional language model: interpolated Kneser-Ney n-grams up to three tokens, as a yardstick.

Kneser and Ney (ICASSP 1995) in the interpolated form of Chen and Goodman (1999, section 4.1.6 of the technical report
TR-10-98), one discount for each order:

    p(w | u v) = max(c(u v w) - D3, 0) / c(u v .) + D3 N(u v .) / c(u v .) p(w | v)
    p(w | v)   = max(N(. v w) - D2, 0) / N(. v .) + D2 N(v .) / N(. v .) p(w)
    p(w)       = max(N(. w) - D1, 0) / N(. .) + D1 N(.) / N(. .) / V

c counts, N(. v w) is the number of different tokens seen before v w, N(v .) that of different tokens seen after v. D of an
order is n1 / (n1 + 2 n2), where n1 and n2 are how many of its (counts or numbers) are 1 and 2. Where a context was never
seen the next order's probability stands alone. A document begins with two start tokens, which are never predicted; the end
of a document is not either, so all models predict the same tokens.

Shapes: T tokens, G different n-grams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.data.store import TokenStore

MAX_TOKENS = (
    50_000_000  # trained on at most this many: 2 GB of memory and half a minute; more gains little over 3 tokens
)


@dataclasses.dataclass(frozen=True)
class _Order:
    """The n-grams of one order: sorted keys of n-grams and their contexts, and what is counted of them.

    Attributes:
      keys_G, values_G: n-grams that were seen; counts, or numbers of different tokens before them.
      contexts_C, totals_C, types_C: their first tokens; sum of the values, and number of n-grams, that begin with them.
      discount: D.
    """

    keys_G: np.ndarray
    values_G: np.ndarray
    contexts_C: np.ndarray
    totals_C: np.ndarray
    types_C: np.ndarray
    discount: float

    @classmethod
    def count(cls, keys_G: np.ndarray, values_G: np.ndarray, base: int) -> _Order:
        contexts_C, first = np.unique(keys_G // base, return_index=True)
        n1, n2 = (int((values_G == number).sum()) for number in (1, 2))
        discount = n1 / (n1 + 2 * n2) if n1 else 0.5  # no singletons: any discount between 0 and 1 is as good
        types = np.diff(np.append(first, len(keys_G)))
        return cls(keys_G, values_G, contexts_C, np.add.reduceat(values_G, first), types, discount)

    def probabilities(self, keys_T: np.ndarray, base: int, lower_T: np.ndarray) -> np.ndarray:
        """float64 [T]: of the last token of each n-gram after its first ones, given the lower order's probabilities."""
        value_T = _find(self.keys_G, self.values_G, keys_T)
        total_T = _find(self.contexts_C, self.totals_C, keys_T // base)
        types_T = _find(self.contexts_C, self.types_C, keys_T // base)
        seen_T = np.maximum(total_T, 1)
        mixed_T = np.maximum(value_T - self.discount, 0) / seen_T + self.discount * types_T / seen_T * lower_T
        return np.where(total_T > 0, mixed_T, lower_T)


def _find(keys_G: np.ndarray, values_G: np.ndarray, wanted_T: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 for keys that are not there."""
    place_T = np.minimum(np.searchsorted(keys_G, wanted_T), len(keys_G) - 1)
    return np.where(keys_G[place_T] == wanted_T, values_G[place_T], 0)


class Trigrams:
    """Kneser-Ney's trigram model over the tokens of a store."""

    def __init__(self, documents: list[np.ndarray], vocab_size: int) -> None:
        """Counts.

        Args:
          documents: integers, all below vocab_size; not all empty.
          vocab_size: V, up to 2**20 (three ids make one 64-bit key).
        """
        assert 0 < vocab_size < 2**20, vocab_size
        self._size, self._base = vocab_size, vocab_size + 1  # the start token is V
        keys_T, _ = _trigram_keys(documents, self._base)
        self._trigrams = _Order.count(*np.unique(keys_T, return_counts=True), self._base)
        # Each trigram once: how many different tokens come before the two that end it, and likewise for the one.
        ending = self._trigrams.keys_G % self._base**2
        self._bigrams = _Order.count(*np.unique(ending, return_counts=True), self._base)
        singles, numbers = np.unique(self._bigrams.keys_G % self._base, return_counts=True)
        self._singles = _Order.count(singles, numbers, self._base)

    def probabilities(self, documents: list[np.ndarray]) -> np.ndarray:
        """float64 [T]: of each token of the documents, after the two before it."""
        keys_T, targets_T = _trigram_keys(documents, self._base)
        uniform_T = np.full(len(keys_T), 1.0 / self._size)
        single_T = self._singles.probabilities(targets_T, self._base, uniform_T)
        double_T = self._bigrams.probabilities(keys_T % self._base**2, self._base, single_T)
        return self._trigrams.probabilities(keys_T, self._base, double_T)


def _trigram_keys(documents: list[np.ndarray], base: int) -> tuple[np.ndarray, np.ndarray]:
    """Each token with the two before it as one int64 [T], and the tokens alone."""
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    tokens_T = np.concatenate(documents).astype(np.int64)
    start = base - 1
    place_T = np.arange(len(tokens_T)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    one_T = np.where(place_T >= 1, np.roll(tokens_T, 1), start)
    two_T = np.where(place_T >= 2, np.roll(tokens_T, 2), start)
    return (two_T * base + one_T) * base + tokens_T, tokens_T


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A simple model's score on held-out text.

    Attributes:
      nats: mean negative log-likelihood of a token.
      tokens: how many were predicted.
      trained_on: tokens that it counted.
    """

    nats: float
    tokens: int
    trained_on: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


def baselines(train: TokenStore, validation: TokenStore) -> dict[str, Baseline]:
    """Scores of "unigram" (frequencies with one added to each count) and "trigram" on all tokens of a held-out store.

    Both learn from the training store; the trigram model from evenly spread documents once it exceeds MAX_TOKENS.
    """
    counts_V = np.asarray(train.token_counts, np.float64) + 1.0
    surprise_V = -np.log(counts_V / counts_V.sum())
    seen_V = np.asarray(validation.token_counts)
    tokens = int(seen_V.sum())
    unigram = Baseline(float(seen_V @ surprise_V) / tokens, tokens, train.num_tokens)
    stride = ceil_div(train.num_tokens, MAX_TOKENS)
    documents = [train.document_tokens(i) for i in range(0, train.num_documents, stride)]
    model = Trigrams(documents, len(counts_V))
    nats = 0.0
    for start in range(0, validation.num_documents, 1000):
        stop = min(start + 1000, validation.num_documents)
        probabilities = model.probabilities([validation.document_tokens(i) for i in range(start, stop)])
        nats -= float(np.log(probabilities).sum())
    return {"unigram": unigram, "trigram": Baseline(nats / tokens, tokens, sum(map(len, documents)))}

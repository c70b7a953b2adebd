"""N-gram baseline: an interpolated Kneser-Ney trigram model.

Kneser and Ney (ICASSP 1995) in the interpolated form of Chen and Goodman (1999, section 4.1.6 of the technical report
TR-10-98), one discount for each order:

    p(w | u v) = max(c(u v w) - D3, 0) / c(u v .) + D3 N(u v .) / c(u v .) p(w | v)
    p(w | v)   = max(N(. v w) - D2, 0) / N(. v .) + D2 N(v .) / N(. v .) p(w)
    p(w)       = max(N(. w) - D1, 0) / N(. .) + D1 N(.) / N(. .) / V

c counts, N(. v w) is the number of different tokens seen before v w, N(v .) that of different tokens seen after v. D of an
order is n1 / (n1 + 2 n2), where n1 and n2 are how many of its values (counts or numbers) are 1 and 2. For a context that was never
seen, the probability is that of the next lower order. A document begins with two start tokens, which are never predicted, and neither
is the end of a document, so all models predict the same tokens.

Shapes: T tokens, G different n-grams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.data.store import TokenStore

# Limit of training tokens, which take 2 GB of memory and half a minute; more hardly improve a trigram model.
MAX_TOKENS = 50_000_000


@dataclasses.dataclass(frozen=True)
class _Order:
    """N-grams of one order: sorted keys of n-grams and of their contexts, with their counts.

    Attributes:
      keys_G: n-grams that were seen.
      values_G: their counts, or the numbers of different tokens before them.
      contexts_C: contexts, which are the n-grams without their last tokens.
      totals_C: sum of the values of the n-grams of each context.
      types_C: number of n-grams of each context.
      discount: D.
    """

    keys_G: np.ndarray
    values_G: np.ndarray
    contexts_C: np.ndarray
    totals_C: np.ndarray
    types_C: np.ndarray
    discount: float

    @classmethod
    def from_counts(cls, keys_G: np.ndarray, values_G: np.ndarray, base: int) -> _Order:
        """Compute contexts and discount; a key in base `base` has one digit per token."""
        contexts_C, first = np.unique(keys_G // base, return_index=True)
        n1, n2 = (int((values_G == number).sum()) for number in (1, 2))
        discount = n1 / (n1 + 2 * n2) if n1 else 0.5  # no singletons: any discount between 0 and 1 is as good
        types = np.diff(np.append(first, len(keys_G)))
        return cls(keys_G, values_G, contexts_C, np.add.reduceat(values_G, first), types, discount)

    def probabilities(self, keys_T: np.ndarray, base: int, lower_T: np.ndarray) -> np.ndarray:
        """Compute the probability of each n-gram's last token given the tokens before it, float64 [T]; `lower_T` is that of the lower order."""
        value_T = _find(self.keys_G, self.values_G, keys_T)
        total_T = _find(self.contexts_C, self.totals_C, keys_T // base)
        types_T = _find(self.contexts_C, self.types_C, keys_T // base)
        seen_T = np.maximum(total_T, 1)
        mixed_T = np.maximum(value_T - self.discount, 0) / seen_T + self.discount * types_T / seen_T * lower_T
        return np.where(total_T > 0, mixed_T, lower_T)


def _find(keys_G: np.ndarray, values_G: np.ndarray, keys_T: np.ndarray) -> np.ndarray:
    """Look up the values of keys, 0 for keys that do not occur."""
    index_T = np.minimum(np.searchsorted(keys_G, keys_T), len(keys_G) - 1)
    return np.where(keys_G[index_T] == keys_T, values_G[index_T], 0)


class Trigrams:
    """Kneser-Ney trigram model of token ids."""

    def __init__(self, documents: list[np.ndarray], vocab_size: int) -> None:
        """Count n-grams.

        Args:
          documents: ids below vocab_size; at least one document has a token.
          vocab_size: V, below 2**20 (three ids make one 64-bit key).
        """
        assert 0 < vocab_size < 2**20, vocab_size
        self._size, self._base = vocab_size, vocab_size + 1  # the start token is V
        keys_T, _ = _trigram_keys(documents, self._base)
        self._trigrams = _Order.from_counts(*np.unique(keys_T, return_counts=True), self._base)
        # Count each different trigram once per bigram that ends it, and each different bigram once per final token.
        ending = self._trigrams.keys_G % self._base**2
        self._bigrams = _Order.from_counts(*np.unique(ending, return_counts=True), self._base)
        singles, numbers = np.unique(self._bigrams.keys_G % self._base, return_counts=True)
        self._singles = _Order.from_counts(singles, numbers, self._base)

    def probabilities(self, documents: list[np.ndarray]) -> np.ndarray:
        """Compute the probability of each token of documents given the two before it, float64 [T]."""
        keys_T, targets_T = _trigram_keys(documents, self._base)
        uniform_T = np.full(len(keys_T), 1.0 / self._size)
        single_T = self._singles.probabilities(targets_T, self._base, uniform_T)
        double_T = self._bigrams.probabilities(keys_T % self._base**2, self._base, single_T)
        return self._trigrams.probabilities(keys_T, self._base, double_T)


def _trigram_keys(documents: list[np.ndarray], base: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode each token and the two before it as one integer; returns the keys and the tokens, int64 [T] each.

    Example: document [7, 8] in base 10, whose start token is 9, has the keys [997, 978].
    """
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    tokens_T = np.concatenate(documents).astype(np.int64)
    start = base - 1
    offset_T = np.arange(len(tokens_T)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    one_T = np.where(offset_T >= 1, np.roll(tokens_T, 1), start)
    two_T = np.where(offset_T >= 2, np.roll(tokens_T, 2), start)
    return (two_T * base + one_T) * base + tokens_T, tokens_T


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A simple model's score on held-out text.

    Attributes:
      nats: mean negative log-likelihood of a token.
      tokens: number of predicted tokens.
      trained_on: number of training tokens.
    """

    nats: float
    tokens: int
    trained_on: int

    @property
    def perplexity(self) -> float:
        """Exponential of `nats`."""
        return math.exp(self.nats)


def baselines(train: TokenStore, validation: TokenStore) -> dict[str, Baseline]:
    """Score the models "unigram" (add-one smoothed frequencies) and "trigram" on all tokens of a held-out store.

    Both are trained on the training store; the trigram model on evenly spaced documents if the store exceeds MAX_TOKENS.
    """
    counts_V = np.asarray(train.token_counts, np.float64) + 1.0
    nats_V = -np.log(counts_V / counts_V.sum())
    seen_V = np.asarray(validation.token_counts)
    tokens = int(seen_V.sum())
    unigram = Baseline(float(seen_V @ nats_V) / tokens, tokens, train.num_tokens)
    stride = ceil_div(train.num_tokens, MAX_TOKENS)
    documents = [train.document_tokens(i) for i in range(0, train.num_documents, stride)]
    model = Trigrams(documents, len(counts_V))
    nats = 0.0
    for start in range(0, validation.num_documents, 1000):
        stop = min(start + 1000, validation.num_documents)
        probabilities = model.probabilities([validation.document_tokens(i) for i in range(start, stop)])
        nats -= float(np.log(probabilities).sum())
    return {"unigram": unigram, "trigram": Baseline(nats / tokens, tokens, sum(map(len, documents)))}

"""Logistic regression over words: the baseline that a trained encoder stands beside."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

_WORD = re.compile(r"\w+|[^\w\s]")


class BagOfWords:
    """Multinomial logistic regression over the words of a text, each counted once, with a squared penalty.

    Minimizes the sum of the records' cross-entropies plus half of the sum of the squared weights (scikit-learn's C=1; the bias has no penalty).
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        """Fit to texts and their labels."""
        self.labels = sorted(set(labels))
        self.words = {word: at for at, word in enumerate(sorted({word for text in texts for word in split(text)}))}
        features = self._features(texts)
        targets = np.eye(len(self.labels))[[self.labels.index(label) for label in labels]]
        shape = (len(self.words) + 1, len(self.labels))  # the last row is the bias

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(shape)
            log_probs = scipy.special.log_softmax(features @ weights, axis=1)
            penalized = np.vstack([weights[:-1], np.zeros(shape[1])])
            value = -(targets * log_probs).sum() + 0.5 * (penalized**2).sum()
            return value, (features.T @ (np.exp(log_probs) - targets) + penalized).ravel()

        found = scipy.optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B")
        self.weights = found.x.reshape(shape)

    def _features(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Mark the known words of each text, and a last column of ones."""
        columns = [
            [self.words[word] for word in sorted(split(text)) if word in self.words] + [len(self.words)]
            for text in texts
        ]
        starts = np.cumsum([0, *map(len, columns)])
        flat = np.concatenate([np.asarray(one, np.int64) for one in columns])
        return scipy.sparse.csr_matrix((np.ones(len(flat)), flat, starts), (len(texts), len(self.words) + 1))

    def accuracy(self, texts: Sequence[str], labels: Sequence[str]) -> float:
        """Return the fraction of texts whose likeliest label is theirs."""
        best = np.asarray(self._features(texts) @ self.weights).argmax(axis=1)
        return float(np.mean([self.labels[at] == label for at, label in zip(best, labels, strict=True)]))


def split(text: str) -> set[str]:
    """Return the lower-cased words and punctuation marks of a text."""
    return set(_WORD.findall(text.lower()))

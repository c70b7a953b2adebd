"""Kneser-Ney trigrams against the formulas written out with dictionaries, and probabilities that add up to one."""

from __future__ import annotations

import collections
import math
import pathlib

import numpy as np
import pytest

from lm_research.data.ngram import Trigrams, baselines
from lm_research.data.store import write_store

V = 7


def corpus(seed: int, count: int) -> list[np.ndarray]:
    """Documents of a small language with frequent patterns, so that counts of 1, 2 and more occur."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = [int(rng.integers(V - 1))]  # V - 1 never occurs
        for _ in range(rng.integers(0, 12)):
            tokens.append((tokens[-1] * 2 + 1) % (V - 1) if rng.random() < 0.6 else int(rng.integers(V - 1)))
        documents.append(np.array(tokens, np.uint16))
    return documents


class BruteForce:
    """Chen and Goodman's formulas, one n-gram at a time."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        self.counts = collections.Counter(
            (*gram,)
            for document in documents
            for gram in zip(["s", "s", *document], ["s", *document], document, strict=False)
        )
        self.orders = [self.counts]
        for _ in range(2):
            before = collections.defaultdict(set)
            for gram in self.orders[-1]:
                before[gram[1:]].add(gram[0])
            self.orders.append(collections.Counter({gram: len(seen) for gram, seen in before.items()}))
        self.discounts = []
        for order in self.orders:
            values = collections.Counter(order.values())
            self.discounts.append(values[1] / (values[1] + 2 * values[2]) if values[1] else 0.5)

    def probability(self, gram: tuple) -> float:
        if not gram:
            return 1 / V
        order = self.orders[3 - len(gram)]
        following = {other: value for other, value in order.items() if other[:-1] == gram[:-1]}
        lower = self.probability(gram[1:])
        if not following:
            return lower
        total, discount = sum(following.values()), self.discounts[3 - len(gram)]
        return max(order[gram] - discount, 0) / total + discount * len(following) / total * lower


def test_every_probability_matches_the_formulas() -> None:
    train, held = corpus(0, 12), corpus(1, 30)
    model, reference = Trigrams(train, V), BruteForce(train)
    grams = [g for document in held for g in zip(["s", "s", *document], ["s", *document], document, strict=False)]
    expected = [reference.probability(gram) for gram in grams]
    np.testing.assert_allclose(model.probabilities(held), expected, rtol=1e-12)
    assert min(expected) > 0 and len(set(np.round(expected, 12))) > 20


@pytest.mark.parametrize("context", [[], [2], [2, 5], [6, 6], [0, 6]])
def test_probabilities_add_up_to_one(context: list[int]) -> None:
    """After seen contexts, half-seen and unseen ones."""
    model = Trigrams(corpus(0, 12), V)
    after = model.probabilities([np.array([*context, token]) for token in range(V)]).reshape(V, -1)[:, -1]
    assert math.isclose(after.sum(), 1.0, rel_tol=1e-12) and (after > 0).all()


def test_a_trigram_by_hand() -> None:
    """One document a b a b: with s for the start, trigrams ssa 1, sab 1, aba 1, bab 1: n1 = 4, n2 = 0, D3 = 1.

    p(b | s a) = (1 - 1) / 1 + 1 * 1 / 1 * p(b | a). Bigrams by different tokens before them: sa {s} 1, ab {s, b} 2, ba {a} 1:
    D2 = 2 / (2 + 2) = 1/2; p(b | a) = (2 - 1/2) / 2 + 1/2 * 1 / 2 * p(b). Tokens: a {s, b} 2, b {a} 1: D1 = 1 / (1 + 2) = 1/3;
    p(b) = (1 - 1/3) / 3 + 1/3 * 2 / 3 * 1/2 = 1/3. Together 3/4 + 1/12 = 5/6.
    """
    model = Trigrams([np.array([0, 1, 0, 1])], 2)
    np.testing.assert_allclose(model.probabilities([np.array([0, 1])])[1], 5 / 6)


def test_baselines_of_stores(tmp_path: pathlib.Path) -> None:
    train, held = corpus(0, 300), corpus(1, 40)
    stores = [
        write_store(tmp_path / name, [[document.tolist()] for document in documents], "none", V)
        for name, documents in (("train", train), ("held", held))
    ]
    scores = baselines(*stores)
    counts = np.bincount(np.concatenate(train), minlength=V) + 1
    by_hand = -np.mean([np.log(counts[token] / counts.sum()) for document in held for token in document])
    assert math.isclose(scores["unigram"].nats, by_hand, rel_tol=1e-12)
    assert scores["trigram"].nats < scores["unigram"].nats < math.log(V)
    assert scores["trigram"].tokens == scores["unigram"].tokens == stores[1].num_tokens
    assert math.isclose(scores["trigram"].nats, -np.log(Trigrams(train, V).probabilities(held)).mean(), rel_tol=1e-12)
    assert scores["trigram"].perplexity == math.exp(scores["trigram"].nats)


def test_one_token_is_enough() -> None:
    assert np.isfinite(np.log(Trigrams([np.array([3])], V).probabilities([np.array([3, 4, 5])]))).all()

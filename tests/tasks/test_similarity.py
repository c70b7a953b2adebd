"""Losses of paired vectors and ranks against arithmetic, and against sentence-transformers (goldens/make_goldens.py)."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.forward import l2_normalize
from lm_research.tasks.similarity import contrastive_loss, ranks


def vectors_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def by_hand(vectors: np.ndarray, temperature: float) -> np.ndarray:
    """-log softmax of each row's own pair among all second and third texts, with loops and float64."""
    losses = []
    for own, one in enumerate(vectors.astype(np.float64)):
        others = [row[column] for column in range(1, vectors.shape[1]) for row in vectors.astype(np.float64)]
        scores = np.array([one[0] @ other for other in others]) / temperature
        losses.append(np.log(np.exp(scores).sum()) - scores[own])
    return np.array(losses)


@pytest.mark.parametrize("texts", [2, 3])
def test_contrast_by_hand(texts: int) -> None:
    vectors = vectors_of(np.random.default_rng(texts), 5, texts, 8)
    different = np.arange(5 * texts).reshape(5, texts)
    losses, right = contrastive_loss(vectors, different, 0.05, False)
    np.testing.assert_allclose(losses, by_hand(vectors, 0.05), rtol=1e-5)
    chosen = np.einsum("ad,bcd->acb", vectors[:, 0], vectors[:, 1:]).reshape(5, -1).argmax(1)
    assert right.tolist() == (chosen == np.arange(5)).tolist()
    both, _ = contrastive_loss(vectors, different, 0.05, True)
    back = by_hand(np.stack([vectors[:, 1], vectors[:, 0]], axis=1), 0.05)
    np.testing.assert_allclose(both, (losses + back) / 2, rtol=1e-5)


GOLDENS = np.load(pathlib.Path(__file__).parent / "goldens" / "embedding.npz")


@pytest.mark.parametrize(
    "name", ["ranking", "ranking_negatives", "ranking_products", "symmetric", "symmetric_negatives"]
)
def test_losses_match_sentence_transformers(name: str) -> None:
    vectors = jnp.asarray(GOLDENS["vectors"][:, : 3 if "negatives" in name else 2])
    products = "products" in name
    vectors = vectors if products else l2_normalize(vectors)
    texts = np.arange(vectors.shape[0] * vectors.shape[1]).reshape(vectors.shape[:2])
    losses, _ = contrastive_loss(vectors, texts, 1.0 if products else 0.05, "symmetric" in name)
    assert float(losses.mean()) == pytest.approx(float(GOLDENS[name]), rel=1e-5)


def test_equal_texts_and_empty_rows_are_not_negatives() -> None:
    """Rows 0 and 1 have the same second text, rows 0 and 2 the same first, row 4 is empty."""
    vectors = vectors_of(np.random.default_rng(0), 5, 2, 8)
    texts = np.array([[0, 10], [1, 10], [0, 12], [3, 13], [-1, -1]])
    for symmetric in (False, True):
        losses, _ = contrastive_loss(vectors, texts, 0.1, symmetric)
        assert np.isfinite(losses).all()
        for row, left in {0: [0, 3], 1: [1, 2, 3], 2: [2, 1, 3], 3: [3, 0, 1, 2]}.items():
            some = vectors[left]
            expected = by_hand(some, 0.1)[0]
            if symmetric:
                expected = (expected + by_hand(some[:, ::-1], 0.1)[0]) / 2
            assert float(losses[row]) == pytest.approx(expected, rel=1e-4, abs=3e-6)


def test_ranks_by_hand() -> None:
    """Four records: the second text of 0 is also that of 3; 1 and 2 have the same first text, so either's second is right."""
    texts = np.array([[0, 10], [1, 11], [1, 12], [3, 10]])
    angles = np.array([[0.0, 0.1], [1.0, 2.0], [1.0, 0.9], [2.1, 0.1]])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    # Candidates at 0.1 (10), 2.0 (11) and 0.9 (12). From 2.1 the nearest is 2.0, then 0.9, then 0.1.
    assert ranks(vectors, texts).tolist() == [1, 1, 1, 3]
    assert ranks(np.ones_like(vectors), texts).tolist() == [3, 2, 2, 3]  # all equal: last among the wrong ones

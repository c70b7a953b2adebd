"""Embeddings do not depend on the other texts of a batch, and pool as sentence-transformers does (tests/tasks/goldens/)."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import toys
from helpers.toys import Exact
from lm_research.errors import UserError
from lm_research.models.forward import pool
from lm_research.models.text_embedding import EmbeddingConfig

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "tasks" / "goldens" / "embedding.npz")
TEXTS = ["a", "some words", "a text that is the longest of them all", "b c"]


@pytest.mark.parametrize(("pooling", "name"), [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")])
def test_pooling_matches_sentence_transformers(pooling: str, name: str) -> None:
    """Rows padded on the right, on the left (which its cls does not look for), and not at all."""
    rows = [0, 1, 3] if pooling == "cls" else [0, 1, 2, 3]
    found = np.asarray(pool(jnp.asarray(GOLDENS["states"]), jnp.asarray(GOLDENS["mask"]), pooling))
    np.testing.assert_allclose(found[rows], GOLDENS[f"pool_{name}"][rows], rtol=1e-6)
    if pooling == "cls":
        assert (found[2] == GOLDENS["states"][2, 2]).all()


class Tokenizer(toys.ByteTokenizer):
    """Rows padded on a side."""

    def __init__(self, left: bool) -> None:
        self.left = left

    def __call__(self, texts: list[str], padding: bool, truncation: bool, max_length: int) -> dict[str, np.ndarray]:
        rows = [self.encode(text)[:max_length] for text in texts]
        widest = max(map(len, rows))
        sides = [(widest - len(row), 0) if self.left else (0, widest - len(row)) for row in rows]
        padded = [(np.pad(row, side), np.pad(np.ones(len(row)), side)) for row, side in zip(rows, sides, strict=True)]
        ids, mask = (np.stack(x).astype(np.int32) for x in zip(*padded, strict=True))
        return {"input_ids": ids, "attention_mask": mask}


def model(left: bool = False, **said: object) -> object:
    lm = toys.language_model(vocab=257, scale=0.3, tokenizer=Tokenizer(left))
    lm.embedding = EmbeddingConfig(**said) if said else None
    return lm


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_text_has_one_embedding(pooling: str) -> None:
    lm = model()
    alone = np.concatenate([lm.embed([text], pooling) for text in TEXTS])
    np.testing.assert_allclose(lm.embed(TEXTS, pooling, batch_size=3), alone, atol=1e-6)
    np.testing.assert_allclose(model(left=True).embed(TEXTS[:1], pooling), alone[:1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, rtol=1e-6)
    states = Exact(lm)(list(TEXTS[1].encode()))[1]
    vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    np.testing.assert_allclose(alone[1], vector / np.linalg.norm(vector), atol=1e-5)
    assert lm.embed([]).shape == (0, alone.shape[1])


def test_the_directory_sets_the_default() -> None:
    lm = model(pooling="last", normalize=False, max_length=5)
    found = lm.embed(TEXTS)
    np.testing.assert_allclose(found, lm.embed([text[:5] for text in TEXTS], "last", False), atol=1e-6)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(lm.embed(TEXTS, "first"), lm.embed(TEXTS, "cls"), atol=1e-7)
    np.testing.assert_allclose(model().embed(TEXTS), model().embed(TEXTS, "mean", True), atol=1e-7)


def test_unsupported_pooling_is_reported() -> None:
    with pytest.raises(
        UserError, match="pooling is 'least'; it must be mean, cls, last, max, mean_sqrt_len or weightedmean"
    ):
        model(pooling="mean+least").embed(TEXTS)
    with pytest.raises(UserError, match="pooling is 'median'"):
        model().embed(TEXTS, pooling="median")
    dense = model(further=("Dense",))
    with pytest.raises(UserError, match="a Dense after the pooling"):
        dense.embed(TEXTS)
    assert dense.embed(TEXTS, pooling="mean").shape[0] == 4  # on request, the vectors before it


def test_token_ids_are_read_unchanged() -> None:
    lm = model(pooling="mean", max_length=12)
    found = lm.embed([list(text.encode()) for text in TEXTS], batch_size=3)
    np.testing.assert_allclose(found, lm.embed(TEXTS), atol=1e-6)
    lm.tokenizer = None
    assert lm.embed([[1, 2]]).shape == (1, found.shape[1])
    for bad in ([[257]], [[-1]], [[10**30]], [[]], [[1.5]]):
        with pytest.raises(UserError):
            lm.embed(bad)

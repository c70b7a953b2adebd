"""Evaluation sums exactly and divides once; the unigram baseline against a count by hand."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest

from lm_research.config import MeshConfig
from lm_research.parallel.mesh import make_mesh
from lm_research.training.eval_loop import count_targets, evaluate, training_frequencies, unigram_loss

OBJECTIVE = types.SimpleNamespace(
    metrics={"lm_loss_nats": "tokens", "lm_accuracy": "tokens", "pair_loss_nats": "rows"},
    loss_terms=("lm_loss_nats", "pair_loss_nats"),
    token_loss_name="lm_loss_nats",
)


TRAINABLE = types.SimpleNamespace(objective=OBJECTIVE)


def run(batches: list[dict[str, float]]) -> dict[str, float]:
    """`evaluate` over batches whose sums are given."""
    names = ("lm_loss_nats", "lm_accuracy", "pair_loss_nats", "total_tokens", "total_rows", "total_bytes")

    def step(params: float, batch: dict) -> tuple[dict, dict]:
        return {name: batch[name][0] * params for name in names}, {}

    arrays = ({name: np.array([batch[name]], np.float32) for name in names} for batch in batches)
    return evaluate(step, 1.0, arrays, TRAINABLE, make_mesh(MeshConfig()))


def sums(loss: float, correct: float, pairs: float, tokens: float, rows: float, size: float) -> dict[str, float]:
    names = ("lm_loss_nats", "lm_accuracy", "pair_loss_nats", "total_tokens", "total_rows", "total_bytes")
    return dict(zip(names, (loss, correct, pairs, tokens, rows, size), strict=True))


def test_means_weigh_batches_by_what_they_hold() -> None:
    """Tokens: 30 nats of 15; pairs: 2.5 nats of 5 rows; bits: 30 / ln 2 over 60 bytes."""
    found = run([sums(20.0, 4.0, 2.0, 10, 4, 40), sums(10.0, 2.0, 0.5, 5, 1, 20)])
    assert found == pytest.approx(
        {
            "eval_loss_nats": 2.5,
            "eval_lm_loss_nats": 2.0,
            "eval_lm_accuracy": 0.4,
            "eval_pair_loss_nats": 0.5,
            "eval_perplexity": math.exp(2.0),
            "eval_bits_per_byte": 30 / math.log(2) / 60,
            "eval_tokens": 15,
        }
    )


def test_many_batches_are_summed_in_double_precision() -> None:
    """2**24 + 1 does not exist in float32: adding ones to it would lose them all."""
    batches = [sums(2.0**24, 0, 0, 2.0**24, 1, 1)] + [sums(1.0, 0, 0, 1, 0, 0)] * 100
    assert run(batches)["eval_tokens"] == 2**24 + 100


def test_a_hopeless_loss_has_infinite_perplexity() -> None:
    assert run([sums(5000.0, 0, 0, 5, 1, 5)])["eval_perplexity"] == math.inf


def test_no_tokens() -> None:
    assert run([sums(0.0, 0, 0, 0, 0, 0)])["eval_loss_nats"] == 0.0


def test_unigram_loss() -> None:
    """Counts 3, 1, 0 of three tokens, plus one each: probabilities 4/7, 2/7, 1/7."""
    batches = [
        {"targets_BM": np.array([[0, 1], [2, 0]]), "weights_BM": np.array([[1.0, 1.0], [1.0, 0.0]])},
        {"targets_BM": np.array([[0, 0]]), "weights_BM": np.array([[1.0, 0.0]])},
    ]
    targets_V = count_targets(batches, 3)
    assert targets_V.tolist() == [2, 1, 1]
    expected = (2 * math.log(7 / 4) + math.log(7 / 2) + math.log(7)) / 4
    assert unigram_loss(np.array([3, 1, 0]), targets_V) == pytest.approx(expected)
    assert unigram_loss(np.array([3, 1, 0]), count_targets([], 3)) == 0.0


def test_special_tokens_are_as_frequent_as_in_training_rows() -> None:
    """Text of 60 tokens a and 40 b, also a stray end token; rows with 10 tokens of text, 4 sentinels, 2 ends: 40 and 20 a 100 tokens."""
    text_V, sample_V = np.array([60, 40, 1, 0, 0]), np.array([7, 3, 2, 4, 0])
    found = training_frequencies(text_V, sample_V, np.array([2, 3]))
    assert found.tolist() == [60, 40, 20, 40, 0]
    assert training_frequencies(text_V, np.array([7, 3, 0, 0, 0]), np.array([2, 3])).tolist() == [60, 40, 0, 0, 0]

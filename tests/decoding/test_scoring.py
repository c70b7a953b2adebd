"""Likelihoods of given continuations against whole texts run without a cache, and the windows of long texts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.toys import VOCAB, Exact, language_model
from lm_research.decoding.generation_request import engine_of
from lm_research.decoding.scoring import token_logprobs_of_rows, windows
from lm_research.errors import UserError


def test_likelihood_and_whether_it_is_the_greedy_continuation() -> None:
    """Sums over the logits of a forward pass over the whole text; one of the continuations is the greedy one."""
    lm = language_model()
    exact = Exact(lm)
    prompts = [[1, 2, 3], [4], [5, 6]]
    greedy = [*prompts[0]]
    for _ in range(3):
        greedy.append(int(np.argmax(exact.next(greedy))))
    continuations = [greedy[3:], [1, 2, 3, 4, 5], [7]]
    found = token_logprobs_of_rows(engine_of(lm), prompts, continuations)
    for prompt, more, (log, best) in zip(prompts, continuations, found, strict=True):
        logits_LV = np.asarray(exact([*prompt, *more])[0], np.float64)[len(prompt) - 1 : -1]
        expected = [row[token] - np.log(np.exp(row).sum()) for row, token in zip(logits_LV, more, strict=True)]
        np.testing.assert_allclose(log, expected, atol=1e-5)
        assert best.tolist() == [bool(row.argmax() == token) for row, token in zip(logits_LV, more, strict=True)]
    assert found[0][1].all()


def test_the_last_token_needs_no_position() -> None:
    """32 positions: 32 tokens are read, and a 33rd is scored."""
    engine = engine_of(language_model())
    row = [token % VOCAB for token in range(33)]
    assert len(token_logprobs_of_rows(engine, [row[:1]], [row[1:]])[0][0]) == 32
    with pytest.raises(UserError, match="has 34 tokens, but the model has positions for 32"):
        token_logprobs_of_rows(engine, [row[:2]], [[*row[1:]]])


def test_windows_by_hand() -> None:
    """Ten tokens, four read at a time: each scored once, and the last window reads as many as fit."""
    assert list(windows(range(10), 99, 4)) == [
        ([99], [0, 1, 2, 3]),  # reads 99 0 1 2
        ([3], [4, 5, 6, 7]),  # reads 3 4 5 6
        ([5, 6, 7], [8, 9]),  # reads 5 6 7 8
    ]
    assert list(windows([5], 99, 4)) == [([99], [5])] and list(windows([], 99, 4)) == []

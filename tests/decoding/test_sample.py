"""Samples: prompts are kept, texts end at the separator, seeds decide, and choices follow the model's probabilities.

Legend: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.decoding.sample import Sampler
from lm_research.models.heads import Projection

SEP = tiny.WordTokenizer.roles["sep"]


class TableModel:
    """The next token's logits are a row of a table [V, V], chosen by the last token."""

    def __init__(self, params: Any) -> None:
        self.table_VD = params

    def decoder(self, tokens_BL: jax.Array) -> jax.Array:
        return jax.nn.one_hot(tokens_BL, tiny.VOCAB)

    def predict_tokens(self, x_BLD: jax.Array) -> Projection:
        return Projection(x_BLD, self.table_VD, None)


TABLE_MODEL = types.SimpleNamespace(bind=TableModel)


def chain(*steps: tuple[int, int]) -> np.ndarray:
    """A table [next, last] in which each token has one likely successor."""
    table = np.zeros((tiny.VOCAB, tiny.VOCAB), np.float32)
    for last, following in steps:
        table[following, last] = 100.0
    return table


def test_prompts_are_kept_and_texts_end_at_the_separator() -> None:
    sample = Sampler(TABLE_MODEL, tiny.WordTokenizer(), length=12)
    table = chain((SEP, 30), (30, 31), (31, SEP), (10, 11), (11, 12), (12, 13), (13, SEP))
    texts = sample(table, ["", "w10", "w50 w10 w11", "w13"], seed=0)
    assert texts == ["w30 w31", "w10 w11 w12 w13", "w50 w10 w11 w12 w13", "w13"]


def test_texts_without_end_fill_the_length_and_long_prompts_are_cut() -> None:
    sample = Sampler(TABLE_MODEL, tiny.WordTokenizer(), length=6)
    table = chain((10, 11), (11, 10))
    assert sample(table, ["w10"], seed=0) == ["w10 w11 w10 w11 w10"]
    assert sample(table, [" ".join(f"w{n}" for n in range(20, 30))], seed=0) == ["w20 w21 w22 w23 w24"]
    assert sample(table, [], seed=0) == []


@pytest.fixture(scope="module")
def decoder() -> tuple[Any, Any, Callable]:
    """A real model, parameters, and its next-token logits [V] for a list of tokens."""
    definition = tiny.model("gpt2")
    params = tiny.random_params(definition)
    run = tiny.jit(
        lambda params, tokens_BL: (lambda m: m.predict_tokens(m.decoder(tokens_BL)).logits())(definition.bind(params))
    )

    def following(tokens: list[int]) -> np.ndarray:
        row = np.zeros((1, 16), np.int32)
        row[0, : len(tokens)] = tokens
        return np.asarray(run(params, row))[0, len(tokens) - 1]

    return definition, params, following


def test_one_candidate_is_greedy(decoder: tuple) -> None:
    definition, params, following = decoder
    prompts = ["w9 w20", "w33", ""]
    expected = []
    for prompt in prompts:
        tokens = [SEP, *(int(word[1:]) for word in prompt.split())]
        while len(tokens) < 16:
            tokens.append(int(following(tokens).argmax()))
            if tokens[-1] == SEP:
                break
        expected.append(tiny.WordTokenizer().decode(tokens))
    assert Sampler(definition, tiny.WordTokenizer(), 16, top_k=1)(params, prompts, seed=3) == expected
    assert len(set(" ".join(expected).split())) > 4  # it generates more than one word


def test_the_seed_decides(decoder: tuple) -> None:
    definition, params, _ = decoder
    sample = Sampler(definition, tiny.WordTokenizer(), 16)
    first, again, other = (sample(params, ["w9", "w9"], seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first[0] != first[1]  # rows draw independently


def test_choices_follow_temperature_and_candidates_and_are_independent() -> None:
    logits = np.full(tiny.VOCAB, -20.0, np.float32)
    logits[[20, 21, 22, 23]] = np.log([8.0, 4.0, 2.0, 1.0])
    table = np.repeat(logits[:, None], tiny.VOCAB, axis=1)  # whatever precedes
    rows = 4000
    texts = Sampler(TABLE_MODEL, tiny.WordTokenizer(), 4, temperature=0.5, top_k=3)(table, ["w10"] * rows, seed=0)
    pairs = [tuple(text.split()[1:]) for text in texts]
    # Probabilities at temperature 1/2 are squared: 64, 16 and 4 of 84; w23 is not among three candidates.
    shares = {"w20": 64 / 84, "w21": 16 / 84, "w22": 4 / 84}
    assert {word for pair in pairs for word in pair} == set(shares)
    for word, share in shares.items():
        for place in (0, 1):
            found = sum(pair[place] == word for pair in pairs) / rows
            assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / rows)
    alike = sum(share**2 for share in shares.values())
    assert abs(sum(a == b for a, b in pairs) / rows - alike) < 5 * math.sqrt(alike * (1 - alike) / rows)


def test_rows_past_the_tokenizer_are_never_chosen() -> None:
    sample = Sampler(TABLE_MODEL, tiny.WordTokenizer(20), length=5, top_k=1)
    table = chain((10, 30))
    table[11, 10] = 50.0  # the best among tokens that exist
    table[SEP, 11] = 50.0
    assert sample(table, ["w10"], seed=0) == ["w10 w11"]

"""Words, entities and answers from made-up probabilities, by the rules of transformers' pipelines of the same names."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from lm_research.pipelines import extraction
from lm_research.pipelines.extraction import QuestionAnswering


def token(start: int, end: int, probs: list[float], continues: bool = False) -> dict[str, Any]:
    return dict(start=start, end=end, probs=np.array(probs), ids=[start], continues_word=continues)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("first", [0.5, 0.3, 0.2]), ("average", [0.3, 0.5, 0.2]), ("max", [0.1, 0.7, 0.2])],
)
def test_a_word_has_the_probabilities_of_its_tokens(strategy: str, expected: list[float]) -> None:
    tokens = [token(0, 2, [0.5, 0.3, 0.2]), token(2, 4, [0.1, 0.7, 0.2], True), token(5, 6, [1.0, 0.0, 0.0])]
    first, second = extraction._words(tokens, strategy)
    assert (first["start"], first["end"], first["ids"]) == (0, 4, [0, 2])
    assert first["probs"] == pytest.approx(expected)
    assert (second["start"], second["end"], second["ids"]) == (5, 6, [5])
    (alone,) = extraction._words([token(3, 4, [1.0, 0.0, 0.0], True)], strategy)  # nothing is before it
    assert alone["start"] == 3


NAMES = ["O", "B-PER", "I-PER", "B-work-of-art", "I-work-of-art", "MISC", "B-"]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("1 2 0", [("PER", 0, 5), ("O", 6, 8)]),
        ("1 1", [("PER", 0, 2), ("PER", 3, 5)]),  # B begins a new one
        ("2 2 1", [("PER", 0, 5), ("PER", 6, 8)]),  # an I without a B does too
        ("3 4 2", [("work-of-art", 0, 5), ("PER", 6, 8)]),
        ("5 5", [("MISC", 0, 5)]),
        ("6 0", [("", 0, 2), ("O", 3, 5)]),
        ("", []),
    ],
)
def test_entities_are_neighbors_of_one_class(tags: str, entities: list[tuple[str, int, int]]) -> None:
    """Transformers' `get_tag` takes everything after the first hyphen for the class."""
    pieces = [token(3 * i, 3 * i + 2, np.eye(7)[int(tag)].tolist()) for i, tag in enumerate(tags.split())]
    found = list(extraction._entities(pieces, NAMES, lambda ids: f" {ids} "))
    assert [(one["entity_group"], one["start"], one["end"]) for one in found] == entities


def test_the_score_of_an_entity_is_the_mean_of_its_pieces() -> None:
    pieces = [token(0, 2, [0.1, 0.9, 0.0]), token(3, 5, [0.2, 0.3, 0.5]), token(6, 8, [0.0, 0.2, 0.8])]
    (found,) = extraction._entities(pieces, NAMES, lambda ids: f" {ids} ")
    assert found["score"] == pytest.approx((0.9 + 0.5 + 0.8) / 3) and found["word"] == "[0, 3, 6]"


def test_spans_are_widened_to_words() -> None:
    """Words of two, one and no tokens; a token that covers several words is left as it is."""
    context = "Emma Woodhouse, handsome"
    offsets = [(0, 2), (2, 4), (5, 14), (14, 15), (15, 15), (16, 20), (20, 24), (0, 24)]
    widen = extraction._word_widener(context, [0, 0, 1, 2, None, 3, 3, 4], offsets)
    assert widen(2, 4) == (0, 4) and widen(2, 14) == (0, 14) and widen(16, 20) == (16, 24)
    assert widen(5, 14) == (5, 14) and widen(15, 15) == (15, 15) and widen(0, 24) == (0, 24)


def test_positions_that_are_not_allowed_have_no_probability() -> None:
    """Of log 1, log 3 and log 4 without the last, a quarter and three quarters."""
    found = extraction._masked_softmax(np.log(np.array([1, 3, 4], np.float32)), np.array([0, 1]))
    assert found.tolist() == pytest.approx([0.25, 0.75, 0.0]) and found.dtype == np.float64


def searched(allow: bool, top_k: int = 5, longest: int = 2) -> list[tuple[str, int, int]]:
    """Answers in "a b c" of two windows: [CLS] ? [SEP] a b and [CLS] ? [SEP] b c, in percent."""
    logits = [
        {"start_logits": np.log([[2, 1e-9, 1e-9, 6, 2]]), "end_logits": np.log([[2, 1e-9, 1e-9, 2, 6]])},
        {"start_logits": np.log([[1, 1e-9, 1e-9, 1, 8]]), "end_logits": np.log([[1, 1e-9, 1e-9, 4, 5]])},
    ]
    windows = [
        types.SimpleNamespace(
            ids=np.array([2, 9, 3, 10 + number, 11 + number]),
            types=np.array([0, 0, 0, 1, 1]),
            offsets=np.array([(-1, -1)] * 3 + [(2 * number, 2 * number + 1), (2 * number + 2, 2 * number + 3)]),
        )
        for number in (0, 1)
    ]
    given: list[dict[str, np.ndarray]] = []

    def forward(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given.append(arrays)
        return logits[len(given) - 1]

    tokenizer = types.SimpleNamespace(uses_types=True, roles={"cls": 2})
    reader = types.SimpleNamespace(forward=forward, tokenizer=tokenizer)
    found = QuestionAnswering._search(reader, "a b c", windows, lambda a, b: (a, b), top_k, longest, allow)
    assert [one["token_type_ids"].tolist() for one in given] == [[[0, 0, 0, 1, 1]]] * 2
    assert all(one["attention_mask"].tolist() == [[1] * 5] for one in given)
    assert all(one["answer"] == "a b c"[one["start"] : one["end"]] for one in found)
    return [(one["answer"], round(100 * one["score"])) for one in found]


def test_answers_of_several_windows() -> None:
    """Starts are 0.2 (none), 0.6, 0.2 and 0.1, 0.1, 0.8; ends 0.2, 0.2, 0.6 and 0.1, 0.4, 0.5. A span has its best product."""
    expected = [("c", 40), ("a b", 36), ("b", 12), ("a", 12), ("b c", 5)]
    assert sorted(searched(False)) == sorted(expected) and searched(False)[:2] == expected[:2]
    assert searched(False, top_k=1) == [("c", 40)]
    assert ("a b", 36) not in searched(False, longest=1)
    assert searched(True, top_k=9)[-1] == ("", 1)  # 0.1 x 0.1, the least of both windows

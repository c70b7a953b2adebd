"""Token sequences, frames and answers from ids: truncation, padding, and answers without tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Frame
from lm_research.tokenizers.chat_answers import Answers, answer_ids
from lm_research.tokenizers.hf_text import byte_lengths
from lm_research.tokenizers.inputs import Row, bert_rows, stack_rows


def longest_first(first: int, other: int, limit: int) -> tuple[int, int]:
    """One token at a time from the longer text; of equally long ones from the first, then the second."""
    while first + other > limit:
        first, other = (first - 1, other) if first >= other else (first, other - 1)
    return first, other


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize(("first", "other"), [(5, 2), (2, 6), (4, 6), (6, 4), (4, 4), (5, 5), (1, 9), (0, 3)])
def test_the_longer_text_of_a_pair_is_cut_first(first: int, other: int, framed: bool) -> None:
    a, b = list(range(10, 10 + first)), list(range(30, 30 + other))
    special = 3 if framed else 0
    for limit in range(special, first + other + special + 2):
        (row,) = bert_rows([a], [b], (1, 2) if framed else None, limit)
        kept, rest = longest_first(first, other, limit - special)
        own, second = ([1, *a[:kept], 2], [*b[:rest], 2]) if framed else (a[:kept], b[:rest])
        assert (row.ids, row.type_ids) == (own + second, [0] * len(own) + [1] * len(second)), limit
    assert len(bert_rows([a], [b], None, None)[0].ids) == first + other
    (alone,) = bert_rows([a], None, (1, 2), 4)
    assert alone.ids == [1, *a[:2], 2] and set(alone.type_ids) == {0}


def test_frames_count_both_sides() -> None:
    assert Frame((1, 2, 3), (4,)).size == 4


@pytest.mark.parametrize(("left", "length", "ids"), [
    (False, 0, [[5, 6, 7], [8, 9, 9]]), (True, 0, [[5, 6, 7], [9, 9, 8]]), (False, 4, [[5, 6, 7, 9], [8, 9, 9, 9]]), (True, 4, [[9, 5, 6, 7], [9, 9, 9, 8]]),
])  # fmt: skip
def test_padding(left: bool, length: int, ids: list[list[int]]) -> None:
    rows = [Row([5, 6, 7], [0, 0, 1]), Row([8], [1]), Row([], [])]
    arrays = stack_rows(rows, length, 9, left, types=True, offsets=False)
    assert arrays["input_ids"].tolist() == [*ids, [9] * len(ids[0])]
    assert (arrays["attention_mask"] == (arrays["input_ids"] != 9)).all()
    assert arrays["token_type_ids"].sum() == 2 and (arrays["token_type_ids"][1] == (arrays["input_ids"][1] == 8)).all()
    with pytest.raises(TokenizerError, match="have 0 to 3 tokens"):
        stack_rows(rows, None, 9, False, types=False, offsets=False)


class Parts:
    """A tokenizer that gives no offsets; a text's tokens are its characters' codes, and spaces have no token."""

    supports_offsets = False

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text if letter != " "] for text in texts]

    encode_after = encode_batch


@pytest.mark.parametrize(
    ("text", "spans", "parts"),
    [
        ("abcd", [(1, 2), (3, 4)], ["a", "b", "c", "d"]),
        ("a cd", [(1, 2), (3, 4)], ["ac", "d"]),  # the first answer has no token, so its neighbors are one part
        ("abc ", [(1, 2), (3, 4)], ["a", "b"]),  # nor has the last one: nothing is left to learn after b
        ("a b ", [(1, 2), (3, 4)], []),
    ],
)
def test_answers_without_a_token(text: str, spans: list[tuple[int, int]], parts: list[str]) -> None:
    tokenizer: Any = Parts()
    assert answer_ids(tokenizer, Answers(text, spans, False)) == [[ord(letter) for letter in part] for part in parts]


def test_every_character_of_the_byte_alphabet_is_one_byte() -> None:
    """As in GPT-2's bytes_to_unicode.

    "!" to "~", the inverted exclamation mark to the not sign and the registered sign to y with diaeresis are themselves; the other 68
    bytes map to the code points after U+00FF.
    """
    own = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("\u00a1"), ord("\u00ac") + 1),
        *range(ord("\u00ae"), ord("\u00ff") + 1),
    ]
    letters = [chr(code) for code in [*own, *range(256, 256 + 68)]]
    assert len(letters) == 256
    vocab = {letter: number for number, letter in enumerate(letters)} | {"ab": 256, "\u0120ab": 257}
    spec = {"model": {}, "pre_tokenizer": {"type": "ByteLevel"}}
    assert byte_lengths(vocab, 258, spec).tolist() == np.array([1] * 256 + [2, 3]).tolist()

"""Rows of sentences with tags, worked out by hand: windows, words without tokens, words that are cut off."""

from __future__ import annotations

import math
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks.dataset import encode_texts
from lm_research.tasks.records import Record
from lm_research.tasks.tagging import TaggingObjective, TaggingReader
from lm_research.tokenizers.base import Frame

HEAD, TAIL, BLANK, NO = 2, 3, 1, -100  # special ids, and the label of what is not scored


def tokenizer_of(**more: Any) -> Any:
    """A word of n letters, such as "aa", has n tokens: 10 for a, 11 for b and so on; a hyphen has none."""

    def encode_words(words: list[str]) -> list[list[int]]:
        return [[10 + ord(letter) - ord("a") for letter in word if letter != "-"] for word in words]

    given = {
        "call_frame": Frame((HEAD, HEAD), (TAIL, TAIL)),
        "roles": {"unk": BLANK},
        "encode_words": encode_words,
    } | more
    return types.SimpleNamespace(**given)


def reader_of(**task: Any) -> TaggingReader:
    """Eight ids a row, of which four are a sentence's."""
    given = {"name": "tagging", "train": "f", "text_key": "words", "label_key": "labels", "doc_stride": 1, **task}
    return TaggingReader(resolve({"task": given, "data": {"max_length": 8}}))


def rows(reader: TaggingReader, words: str, tags: str, tokenizer: Any = None) -> list[tuple[list[int], Any, bool]]:
    record = Record("f, line 1", {"words": words.split(), "labels": list(tags)})
    found = reader.encode([record], ("A", "B", "C"), tokenizer or tokenizer_of())
    whole = [(list(row.ids), list(row.labels), row.first) for row in found]
    assert all(ids[:2] == [HEAD] * 2 and ids[-2:] == [TAIL] * 2 for ids, _, _ in whole)
    assert all(labels[:2] == labels[-2:] == [NO] * 2 and len(labels) == len(ids) for ids, labels, _ in whole)
    return [(ids[2:-2], labels[2:-2], first) for ids, labels, first in whole]


def test_only_the_first_token_of_a_word_has_a_label() -> None:
    assert rows(reader_of(), "a bb c", "ABC") == [([10, 11, 11, 12], [0, 1, NO, 2], True)]


def test_words_without_tokens_and_long_ones() -> None:
    """A blank stands for the first; the second is cut to the four tokens of a row."""
    reader = reader_of()
    assert rows(reader, "- b", "AB") == [([BLANK, 11], [0, 1], True)]
    padded = tokenizer_of(roles={"pad": 7})
    assert rows(reader, "-", "A", padded)[0][0] == [7]
    assert rows(reader, "bbbbbb", "B") == [([11, 11, 11, 11], [1, NO, NO, NO], True)]


def test_a_long_sentence_is_two_windows() -> None:
    """The second begins with one word of the first, which is scored where it has more words around it."""
    reader = reader_of()
    found = rows(reader, "aa b c aa", "ABCA")
    assert [(ids, first) for ids, _, first in found] == [
        ([10, 10, 11, 12], True),
        ([12, 10, 10], False),
    ]
    assert [labels for _, labels, _ in found] == [[0, NO, 1, 2], [NO, 0, NO]]
    several = [types.SimpleNamespace(first=first) for _, _, first in found]
    assert reader.summarize_lengths(several, None) == "sentences past data.max_length=8 tokens in 1 more windows"
    assert reader.summarize_lengths(several[:1], None) == "none is cut" and reader.metadata(Record("f", {})) is None


def test_a_sentence_may_be_cut() -> None:
    """Of five tokens the last, a whole word, is lost; the half of a word is not counted."""
    reader = reader_of(long_sentences="cut")
    assert rows(reader, "aa b c a", "ABCA") == [([10, 10, 11, 12], [0, NO, 1, 2], True)]
    assert rows(reader, "aa b cc", "ABC")[0][0] == [10, 10, 11, 12]
    record = Record("f", {"words": ["a", "b"], "labels": ["A", "B"]})
    assert reader.metadata(record) == {"tags": ["A", "B"]}
    assert reader.summarize_lengths([], None).startswith("1 words are past data.max_length=8: their tags ")
    assert reader.summarize_lengths([], None) == "none is cut"  # each is counted once


def test_tags_that_no_training_record_has() -> None:
    with pytest.raises(
        DataError, match=r"line 1 has the tag 'X', which no training record has \(.* in --config.task.labels, "
    ):
        rows(reader_of(), "a", "X")


def test_loss_and_accuracy_of_words() -> None:
    """Of three words two are right, with probabilities 3/4, 1/2 and, of the other one, 1/8; the rest has no label."""
    logits = np.log(np.array([[[3, 1], [7, 1], [9, 1]], [[1, 1], [1, 9], [1, 9]]], np.float32))
    batch = {"labels_BL": jnp.array([[0, 1, NO], [0, NO, NO]]), "row_weights_B": jnp.ones(2)}
    found = TaggingObjective().logit_sums(jnp.asarray(logits), batch)
    assert float(found["accuracy"]) == 2
    assert float(found["tag_loss_nats"]) == pytest.approx(math.log(4 / 3) + math.log(8) + math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("types_", "second"), [([[0, 0, 1, 1]], 2), ([[0, 0, 0, 0]], 0), (None, 0)], ids=["pair", "one", "no types"]
)
def test_where_a_second_text_begins(types_: list[list[int]] | None, second: int) -> None:
    encoded = {"input_ids": np.array([[5, 6, 7, 8]]), "attention_mask": np.array([[1, 1, 1, 0]])}
    encoded |= {} if types_ is None else {"token_type_ids": np.array(types_)}
    found = list(encode_texts(lambda *_, **__: encoded, ["a"], None, 8))
    assert found == [([5, 6, 7], second)]

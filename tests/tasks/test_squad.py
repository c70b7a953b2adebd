"""SQuAD's scores by hand, from the definitions of the authors' scripts, and its files made flat."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks import squad
from lm_research.tasks.records import read_records

WORDS = {  # lower case, then no punctuation, then no articles, then split at white space
    "The Cat, an  animal!": ["cat", "animal"],
    "a.b": ["ab"],  # the point goes first, so there is no article
    "Theatre": ["theatre"],
    "a\u2013b": ["\u2013b"],  # a dash that is not ASCII stays, and is a word boundary
    "U.S.\tdollars": ["us", "dollars"],
    "the": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words(text: str) -> None:
    assert squad.words(text) == WORDS[text]


def test_best_of_several_answers() -> None:
    """ "big red dog" against "red dog": 2 words in common of 3 and 2, F1 = 2 x 2 / (3 + 2)."""
    for null in (False, True):
        assert squad.exact_match("the Red Dog.", ["a cat", "red dog"], null) == 1
        assert squad.exact_match("dog red", ["red dog"], null) == 0
        assert squad.f1("big red dog", ["a cat", "red dog"], null) == pytest.approx(4 / 5)
        assert squad.f1("red red", ["red"], null) == pytest.approx(2 / 3)  # bags: one in common of 2 and 1
        assert squad.f1("bird", ["a cat", "red dog"], null) == 0


def test_answers_without_words() -> None:
    """1.1 finds no words in common; 2.0 leaves such answers out, and to give none where there is none is right."""
    assert squad.f1("an", ["the"], null=False) == 0 and squad.exact_match("an", ["the"], null=False) == 1
    assert squad.f1("", [], null=True) == squad.exact_match("", [], null=True) == 1
    assert squad.f1("x", [], null=True) == squad.exact_match("x", [], null=True) == 0
    assert squad.f1("", ["the", "cat"], null=True) == 0
    assert squad.f1("cat", ["the", "cat"], null=True) == 1


def test_means() -> None:
    """Two with an answer (F1 1 and 2/3), two without (one is left unanswered)."""
    found = squad.scores(["cat", "red", "", "x"], [["cat"], ["red dog"], [], []], null=True)
    assert found == pytest.approx({
        "exact_match": 2 / 4, "f1": (1 + 2 / 3 + 1) / 4, "has_answer_exact_match": 1 / 2, "has_answer_f1": (1 + 2 / 3) / 2,
        "no_answer_exact_match": 1 / 2, "no_answer_f1": 1 / 2,
    })  # fmt: skip
    assert set(squad.scores(["cat"], [["cat"]], null=False)) == {"exact_match", "f1"}


def test_best_threshold() -> None:
    """By margin: right (-2), unanswerable (0), right (1), unanswerable (3). Answering 3 of 4 gets 3 right, which is the best
    but for answering the first alone: 1 + 2 unanswerable = 3 too. The first of equals counts, the lower threshold."""
    margins, answers, golds = [1.0, -2.0, 3.0, 0.0], ["cat", "dog", "x", "y"], [["cat"], ["dog"], [], []]
    assert squad.best_threshold(margins, answers, golds) == (3 / 4, -2.0)
    assert squad.best_threshold([1.0, 1.0], ["cat", "x"], [["cat"], []]) == (
        1 / 2,
        pytest.approx(1.0),
    )  # none: 1/2 as well


DOCUMENT = {
    "version": "v2.0",
    "data": [
        {"title": "t", "paragraphs": [
            {"context": "The cat sat.", "qas": [
                {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}], "is_impossible": False},
                {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
            ]},
        ]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
def test_files_are_made_flat(indent: int | None, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENT, indent=indent))
    first, second = read_records(str(tmp_path / "a.json"), resolve({}))
    assert first.fields == {
        "title": "t", "id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}], "is_impossible": False,
        "context": "The cat sat.",
    }  # fmt: skip
    assert second.fields["context"] == "The cat sat." and second.where.endswith("a.json, data 0, paragraph 0, id '2'")


def test_articles_one_a_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps(DOCUMENT["data"][0]) + "\n") * 2)
    found = list(read_records(str(tmp_path / "a.jsonl"), resolve({})))
    assert [record.fields["id"] for record in found] == ["1", "2", "1", "2"]
    assert found[3].where.endswith("a.jsonl, line 2, paragraph 0, id '2'")


@pytest.mark.parametrize("value", ["a text", 3, None, [], ["a", "b"], [{"text": "a"}], {"qas": []}], ids=repr)
@pytest.mark.parametrize("name", ["paragraphs", "data"])
def test_records_with_a_field_of_that_name(name: str, value: Any, tmp_path: pathlib.Path) -> None:
    rows = [{name: value, "text": '"paragraphs"', "label": "a"}, {"text": "y", name: value, "label": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [record.fields for record in read_records(str(tmp_path / "a.jsonl"), resolve({}))] == rows


BROKEN: dict[str, tuple[Any, str]] = {
    "no paragraphs": ({"data": [{"paragraphs": 1}]}, "data 0 has no list 'paragraphs'"),
    "no questions": ({"data": [{"paragraphs": [{"context": "x"}]}]}, "data 0, paragraph 0 has no list 'qas'"),
    "a text for a question": (
        {"data": [{"paragraphs": [{"qas": ["x"]}]}]},
        "paragraph 0, question 0 is 'x', not an object",
    ),
    "no list of questions": ({"paragraphs": [{"qas": 1}]}, "paragraph 0 has no list 'qas'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tmp_path: pathlib.Path) -> None:
    document, message = BROKEN[case]
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        list(read_records(str(tmp_path / "a.json"), resolve({})))


def test_a_file_cut_short(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENT, indent=1)[:-20])
    with pytest.raises(DataError, match="a.json begins like one JSON object but is not one"):
        list(read_records(str(tmp_path / "a.json"), resolve({})))

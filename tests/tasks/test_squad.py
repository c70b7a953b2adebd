"""Flatten SQuAD's files."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks.records import read_records

DOCUMENT = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "The cat sat.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who?",
                            "answers": [{"text": "cat", "answer_start": 4}],
                            "is_impossible": False,
                        },
                        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                },
            ],
        },
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_files_are_flattened(indent: int | None, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENT, indent=indent))
    first, second = read_records(str(tmp_path / "a.json"), resolve({}))
    assert first.fields == {
        "title": "t",
        "id": "1",
        "question": "Who?",
        "answers": [{"text": "cat", "answer_start": 4}],
        "is_impossible": False,
        "context": "The cat sat.",
    }
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

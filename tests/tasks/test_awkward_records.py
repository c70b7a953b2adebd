"""Records that a task does not expect: each is used, or refused with its position; none ends in a traceback.

Any exception but a DataError that names file and line fails these tests.
"""

from __future__ import annotations

import csv
import json
import math
import pathlib
from typing import Any

import pytest

from lm_research.config import DataConfig, resolve
from lm_research.data.sources import read_documents
from lm_research.errors import DataError
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import LabeledCorpus, open_labeled
from lm_research.tasks.records import read_records

AWKWARD = [None, 3, math.nan, " ", "\ud800 x", {}, [None], 10**400, [{"role": "user", "content": 3}]]
ANSWER = {"id": "1", "question": "a", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
# Task and what kind of it -> two records and its settings.
GOOD: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "classification pair": (
        {"text": "a", "b": "c", "label": "x", "g": "1", "c": 0.5},
        {"text": "a", "b": "c", "label": "y", "g": "1", "c": 1},
        {"pair_key": "b", "group_key": "g", "relevance_key": "c"},
    ),
    "classification labels": (
        {"text": "a", "label": ["x"]},
        {"text": "a", "label": []},
        {"problem_type": "multi_label"},
    ),
    "classification value": ({"text": "a", "label": 1.0}, {"text": "a", "label": 2}, {"problem_type": "regression"}),
    "tagging": ({"w": ["a"], "t": ["O"]}, {"w": ["a", "b"], "t": ["O", "B-X"]}, {"text_key": "w", "label_key": "t"}),
    "question_answering": (
        ANSWER,
        ANSWER | {"id": "2"},
        {"text_key": "context", "pair_key": "question", "label_key": "answers", "doc_stride": 2},
    ),
    "multiple_choice": (
        {"text": "a", "choices": ["b", "c"], "label": 0},
        {"text": "a", "choices": ["b", "c"], "label": 1},
        {},
    ),
    "multiple_choice fields": (
        {"text": "a", "x": "b", "y": "c", "label": 0},
        {"text": "a", "x": "b", "y": "c", "label": 1},
        {"choices_key": "x,y"},
    ),
    "embedding": (
        {"text": "a", "b": "c", "n": "d"},
        {"text": "b", "b": "c d", "n": "d"},
        {"pair_key": "b", "negative_key": "n"},
    ),
    "embedding value": (
        {"text": "a", "b": "c", "label": 0.5},
        {"text": "b", "b": "c", "label": 1},
        {"pair_key": "b", "problem_type": "regression"},
    ),
    "seq2seq": ({"text": "a", "label": "b"}, {"text": "a b", "label": "b c"}, {}),
    "instruction": ({"text": "a", "label": "b"}, {"text": "a b", "label": "b c"}, {}),
    "instruction columns": (
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": "", "output": "c"},
        {},
    ),
    "instruction messages": ({"messages": TURNS}, {"messages": TURNS}, {}),
}


def build(folder: pathlib.Path, kind: str, rows: list[dict[str, Any]], **task: Any) -> LabeledCorpus:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = resolve(
        {
            "task": {"name": kind, "train": str(file), "validation": str(file)} | task,
            "data": {"max_length": 16},
            "tokenizer": {"path": str(folder)},
            "objective": {"target_length": 8} if TASKS.make(kind).reads_objective else {},
        }
    )
    (folder / "run").mkdir(exist_ok=True)
    return open_labeled(config, folder / "run", TASKS[kind].reader(config), lambda line: None)


@pytest.mark.parametrize("case", GOOD)
def test_each_field_with_an_invalid_value(case: str, tmp_path: pathlib.Path) -> None:
    first, second, task = GOOD[case]
    kind, refused = case.split()[0], 0
    assert build(tmp_path, kind, [first, second], **task).train.num_documents >= 2
    for key in first:
        for value in AWKWARD:
            try:
                build(tmp_path, kind, [first, second, first | {key: value}], **task)
            except DataError as error:
                assert "a.jsonl, line " in str(error), (key, value)
                refused += 1
    assert refused >= 3


def test_halves_of_characters_become_question_marks(tmp_path: pathlib.Path) -> None:
    """As in corpora; a whole pair of surrogates is a character (RFC 8259, section 7)."""
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud83d b\uDE00 \ud83d\ude00"}' + "\n")
    (tmp_path / "a.json").write_text(r'[{"text": "\udfff"}]')
    (record,) = read_records(str(tmp_path / "a.jsonl"), resolve({}))
    assert record.fields["text"] == "a? b? \U0001f600"
    assert list(read_documents(str(tmp_path / "a.jsonl"), DataConfig())) == ["a? b? \U0001f600"]
    assert [record.fields["text"] for record in read_records(str(tmp_path / "a.json"), resolve({}))] == ["?"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"text": ' + "[" * 100_000 + "}"])
def test_values_nested_too_deeply_are_refused(content: str, tmp_path: pathlib.Path) -> None:
    for source in (tmp_path / "a.jsonl", tmp_path / "a.json"):
        source.write_text(content)
        with pytest.raises(DataError, match="a.json"):
            list(read_records(str(source), resolve({})))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_long_fields(name: str, tmp_path: pathlib.Path) -> None:
    """Longer than the 131,072 characters at which Python's csv module ends a field."""
    long, limit = "ab " * 50_000, csv.field_size_limit(131_072)
    (tmp_path / name).write_text("text,label\n{0},x\n".replace(",", "," if name == "a.csv" else "\t").format(long))
    try:
        assert [record.fields for record in read_records(str(tmp_path / name), resolve({}))] == [
            {"text": long, "label": "x"}
        ]
    finally:
        csv.field_size_limit(limit)

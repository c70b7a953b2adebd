"""Records in the form of SuperGLUE's archives, through the shipped configs."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers.train_helpers import ROOT
from lm_research.config import loading, replace, resolve
from lm_research.data.sampler import eval_examples
from lm_research.errors import DataError
from lm_research.tasks import TASKS, superglue
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.records import read_records

PASSAGE = {
    "text": "<b>Sentence 1: </b>Ann has a cat.<br><b>Sentence 2: </b>It sleeps.<br>",
    "questions": [
        {
            "question": "Who has a cat?",
            "answers": [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}],
            "idx": 0,
        },
        {"question": "What does it do?", "answers": [{"text": "Sleep", "idx": 2, "label": 1}], "idx": 1},
    ],
}
WSC = {"span1_index": 0, "span1_text": "Ann", "span2_index": 3, "span2_text": "she"}
# Task -> a record as its train.jsonl has it, and (texts, label) of the records that it becomes.
RECORDS: dict[str, tuple[dict[str, Any], list[tuple[list[str], str]]]] = {
    "boolq": (
        {"question": "is it so", "passage": "It is so.", "idx": 0, "label": True},
        [(["is it so", "It is so."], "True")],
    ),
    "cb": (
        {"premise": "It was a cat.", "hypothesis": "it was a cat", "label": "entailment", "idx": 0},
        [(["It was a cat.", "it was a cat"], "entailment")],
    ),
    "multirc": (
        {"idx": 0, "version": 1.1, "passage": PASSAGE},
        [
            (["Sentence 1: Ann has a cat. Sentence 2: It sleeps.", "Who has a cat? Ann"], "1"),
            (["Sentence 1: Ann has a cat. Sentence 2: It sleeps.", "Who has a cat? Bob"], "0"),
            (["Sentence 1: Ann has a cat. Sentence 2: It sleeps.", "What does it do? Sleep"], "1"),
        ],
    ),
    "superglue_rte": (
        {"premise": "A.", "hypothesis": "B.", "label": "not_entailment", "idx": 3},
        [(["A.", "B."], "not_entailment")],
    ),
    "wic": (
        {
            "word": "place",
            "sentence1": "Come to my place.",
            "sentence2": "The places of a race.",
            "idx": 0,
            "label": False,
            "start1": 11,
            "end1": 16,
            "start2": 4,
            "end2": 10,
            "version": 1.1,
        },
        [(["Come to my *place*.", "The *places* of a race."], "False")],
    ),
    "wsc": (
        {"text": "Ann sleeps when she can.", "target": WSC, "idx": 0, "label": True},
        [(["Ann sleeps when *she* can.", "Ann"], "True")],
    ),
}


def read(path: pathlib.Path, record: dict[str, Any], config: str = "classification:cb") -> tuple[Any, list[Any]]:
    path.write_text(json.dumps(record) + "\n")
    name, _, task = config.partition(":")
    resolved = resolve(loading.load(f"{ROOT}/configs/finetune/{name}.py:{task}"))
    return TASKS[name].reader(resolved), list(read_records(str(path), resolved))


@pytest.mark.parametrize("name", RECORDS)
def test_the_archives_are_read_unchanged(name: str, tmp_path: pathlib.Path) -> None:
    record, expected = RECORDS[name]
    reader, records = read(tmp_path / "train.jsonl", record, f"classification:{name}")
    found = [(reader.texts(one), reader._labels(one)) for one in records]
    assert found == [(texts, [label]) for texts, label in expected]
    assert all(f"{tmp_path}/train.jsonl, line 1" in one.where for one in records)


def test_copa(tmp_path: pathlib.Path) -> None:
    record = {
        "premise": "It rained.",
        "choice1": "It was wet.",
        "choice2": "It was dry.",
        "question": "effect",
        "label": 1,
    }
    reader, (one,) = read(tmp_path / "train.jsonl", record, "multiple_choice:copa")
    assert reader.texts(one) == ["It rained.", "effect It was wet.", "effect It was dry."]
    assert reader.resolve({"train": [one]}, lambda line: None)["train"][0].fields["label"] == 1


def test_articles_alone_have_no_words_in_common() -> None:
    """The official script counts common words after removing articles: none, so an F1 of 0."""
    passage = {"text": "A b", "entities": [{"start": 0, "end": 0}]}
    ((_, fields),) = superglue._entities(passage, [{"query": "@placeholder", "answers": [{"text": "The"}]}], "x")
    assert (fields["entity"], fields["f1"]) == ("A", 0.0)


@pytest.mark.parametrize(
    ("text", "index", "expected"),
    [
        ("He said he did, he did.", 2, "He said *he* did, he did."),
        ("He said he did, he did.", 4, "He said he did, *he* did."),
        ("He said he did, he did.", 5, "He said he did, *he* did."),  # one off, as some records are
        ("Ann said: 'He' is it.", 2, "Ann said: *'He'* is it."),
    ],
)
def test_pronouns_are_found_by_their_number(text: str, index: int, expected: str, tmp_path: pathlib.Path) -> None:
    target = {"span1_index": 0, "span1_text": "Ann", "span2_index": index, "span2_text": "he"}
    _, (one,) = read(tmp_path / "train.jsonl", {"text": text, "target": target, "label": True}, "classification:wsc")
    assert one.fields["marked"] == expected


@pytest.mark.parametrize(
    "record",
    [{"passage": {"text": "A.", "questions": [{"question": "Q"}]}}, {"passage": {"questions": [3], "text": "A."}}],
)
def test_malformed_records_are_named(record: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="train.jsonl, line 1 has the fields of a SuperGLUE task"):
        read(tmp_path / "train.jsonl", record)


def test_other_records_are_unchanged(tmp_path: pathlib.Path) -> None:
    record = {"text": "a", "target": "b", "passage": "c", "word": "d"}
    assert read(tmp_path / "train.jsonl", record)[1][0].fields == record


def held_out(
    tmp_path: pathlib.Path, name: str, record: dict[str, Any], count: int, size: int
) -> tuple[Any, list[dict[str, Any]]]:
    """A task on a file with the record twice, `count` records in total, and its held-out batches of `size`."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = tmp_path / "val.jsonl"
    file.write_text((json.dumps(record) + "\n") * 2)
    config = resolve(loading.load(f"{ROOT}/configs/finetune/classification.py:{name}"))
    config = replace(config, task={"train": str(file), "validation": str(file)}, tokenizer={"path": str(tmp_path)})
    corpus = open_labeled(config, tmp_path / "run", TASKS["classification"].reader(config), lambda line: None)
    task = TASKS["classification"](config, corpus)
    rows = task.examples(corpus.validation, "validation")
    assert rows.num_examples == count
    return task, [rows.batch(*eval_examples(number, size, count), 64) for number in range(-(-count // size))]


def test_answers_of_a_question_are_scored_together(tmp_path: pathlib.Path) -> None:
    """Two passages of two questions; scores of batches whose logits equal the labels except for one answer to one question."""
    task, outputs = held_out(tmp_path, "multirc", {"passage": PASSAGE}, count=6, size=4)
    for output in outputs:
        output["logits"] = np.eye(2)[output["labels_B"]]
    assert task.scores(outputs)["group_accuracy"] == 1.0
    outputs[0]["logits"][1] = outputs[0]["logits"][1, ::-1]
    found = task.scores(outputs)
    assert found["group_accuracy"] == 3 / 4
    assert task.value({f"eval_{name}": value for name, value in found.items()}) == pytest.approx(
        (found["f1"] + 3 / 4) / 2
    )


RECORD_TEXT = "Ann Lee met Bob in Rome.\nThey ate\n@highlight\nA meal was had\n@highlight\nBob paid"
RECORD = {
    "source": "news",
    "passage": {
        "text": RECORD_TEXT,
        "entities": [
            {"start": 0, "end": 6},
            {"start": 12, "end": 14},
            {"start": 19, "end": 22},
            {"start": 71, "end": 73},
        ],
    },
    "qas": [
        {"query": "@placeholder was not hungry", "answers": [{"start": 12, "end": 14, "text": "Bob"}], "idx": 0},
        {
            "query": "He saw @placeholder",
            "answers": [{"start": 0, "end": 6, "text": "The Lee!"}, {"start": 0, "end": 6, "text": "Ann, Lee"}],
            "idx": 1,
        },
    ],
    "idx": 0,
}


def test_record_gives_one_record_for_each_query_and_entity(tmp_path: pathlib.Path) -> None:
    """`end` is the last character of an entity; one mentioned twice is one choice; answers are compared as SQuAD's script does."""
    assert RECORD_TEXT[71:74] == "Bob"
    reader, records = read(tmp_path / "train.jsonl", RECORD, "classification:record")
    passage = "Ann Lee met Bob in Rome.\nThey ate. A meal was had. Bob paid"
    found = [(reader.texts(one), one.fields["label"], one.fields["f1"], one.fields["question_id"]) for one in records]
    first, second = (f"{tmp_path}/train.jsonl, line 1, query {number}" for number in (1, 2))
    assert found == [
        ([passage, "Ann Lee was not hungry"], "0", 0.0, first),
        ([passage, "Bob was not hungry"], "1", 1.0, first),
        ([passage, "Rome was not hungry"], "0", 0.0, first),
        ([passage, "He saw Ann Lee"], "1", 1.0, second),  # of one answer two thirds: {ann, lee} and {lee}
        ([passage, "He saw Bob"], "0", 0.0, second),
        ([passage, "He saw Rome"], "0", 0.0, second),
    ]
    assert records[0].where == f"{first}, entity 'Ann Lee'"


def test_partly_right_entities_have_their_words_f1(tmp_path: pathlib.Path) -> None:
    query = {"query": "I saw @placeholder", "answers": [{"start": 0, "end": 2, "text": "Ann"}], "idx": 0}
    _, records = read(tmp_path / "train.jsonl", RECORD | {"qas": [query]}, "classification:record")
    assert [(one.fields["label"], one.fields["f1"]) for one in records] == [
        ("0", pytest.approx(2 / 3)),
        ("0", 0.0),
        ("0", 0.0),
    ]


@pytest.mark.parametrize("broken", [{"qas": [{"query": "no blank", "answers": []}]}, {"qas": None}, {"qas": [{}]}])
def test_broken_queries_are_named(broken: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="train.jsonl, line 1 has the fields of a SuperGLUE task"):
        read(tmp_path / "train.jsonl", RECORD | broken, "classification:record")


def test_record_is_scored_by_the_chosen_entity(tmp_path: pathlib.Path) -> None:
    """Two passages of two queries of three entities; a query counts by its likeliest entity, whatever its probability."""
    task, outputs = held_out(tmp_path, "record", RECORD, count=12, size=8)
    for output in outputs:
        output["logits"] = np.eye(2)[output["labels_B"]] - [0.0, 5.0]  # all are unlikely, right ones less so
    found = task.scores(outputs)
    assert (found["choice_accuracy"], found["choice_credit"]) == (1.0, 1.0)
    outputs[0]["logits"][0, 1] = 9.0  # "Ann Lee was not hungry": wrong, and no word of the answer
    found = task.scores(outputs)
    assert (found["choice_accuracy"], found["choice_credit"]) == (3 / 4, 3 / 4)
    assert task.value({f"eval_{name}": value for name, value in found.items()}) == 3 / 4


def test_credit_of_a_choice_must_be_a_fraction(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "train.jsonl"
    for value, message in ((1.5, "is 1.5, not from 0 to 1"), ("much", "is 'much', not a number")):
        fields = {"passage": "a", "statement": "b", "label": "1", "question_id": "q", "f1": value}
        reader, (one,) = read(file, fields, "classification:record")
        with pytest.raises(DataError, match=f"train.jsonl, line 1: field 'f1' {message}"):
            reader.metadata(one)

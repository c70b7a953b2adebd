"""Records in the form of SuperGLUE's archives, through the ready configs."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from train_helpers import ROOT

from lm_research import config_files
from lm_research.config import replace, resolve
from lm_research.errors import DataError
from lm_research.tasks import TASKS
from lm_research.tasks.labelled import open_labelled
from lm_research.tasks.records import read_records

PASSAGE = {
    "text": "<b>Sentence 1: </b>Ann has a cat.<br><b>Sentence 2: </b>It sleeps.<br>",
    "questions": [
        {"question": "Who has a cat?", "answers": [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}], "idx": 0},
        {"question": "What does it do?", "answers": [{"text": "Sleep", "idx": 2, "label": 1}], "idx": 1},
    ],
}  # fmt: skip
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
            "word": "place", "sentence1": "Come to my place.", "sentence2": "The places of a race.", "idx": 0, "label": False,
            "start1": 11, "end1": 16, "start2": 4, "end2": 10, "version": 1.1,
        },
        [(["Come to my *place*.", "The *places* of a race."], "False")],
    ),
    "wsc": ({"text": "Ann sleeps when she can.", "target": WSC, "idx": 0, "label": True}, [(["Ann sleeps when *she* can.", "Ann"], "True")]),
}  # fmt: skip


def read(path: pathlib.Path, record: dict[str, Any], config: str = "classification:cb") -> tuple[Any, list[Any]]:
    path.write_text(json.dumps(record) + "\n")
    name, _, task = config.partition(":")
    resolved = resolve(config_files.load(f"{ROOT}/configs/finetune/{name}.py:{task}"))
    return TASKS[name].reader(resolved), list(read_records(str(path), resolved))


@pytest.mark.parametrize("name", RECORDS)
def test_the_archives_are_read_as_they_are(name: str, tmp_path: pathlib.Path) -> None:
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
    assert reader._question(one)[2] == 1


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
def test_what_is_not_as_it_should_be_is_named(record: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="train.jsonl, line 1 has the fields of a task of SuperGLUE"):
        read(tmp_path / "train.jsonl", record)


def test_other_records_stay_as_they_are(tmp_path: pathlib.Path) -> None:
    record = {"text": "a", "target": "b", "passage": "c", "word": "d"}
    assert read(tmp_path / "train.jsonl", record)[1][0].fields == record


def test_answers_of_a_question_are_scored_together(tmp_path: pathlib.Path) -> None:
    """Two passages of two questions; scores of batches whose logits are the labels but for one answer of one question."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = tmp_path / "val.jsonl"
    file.write_text((json.dumps({"passage": PASSAGE}) + "\n") * 2)
    config = resolve(config_files.load(f"{ROOT}/configs/finetune/classification.py:multirc"))
    config = replace(config, task={"train": str(file), "validation": str(file)}, tokenizer={"path": str(tmp_path)})
    corpus = open_labelled(config, tmp_path / "run", TASKS["classification"].reader(config), lambda line: None)
    task = TASKS["classification"](config, corpus)
    outputs = []
    for number in range(2):  # six answers in batches of four
        index = np.where(np.arange(4) + 4 * number < 6, np.arange(4) + 4 * number, -1)
        batch = task.examples(corpus.validation, "validation").batch(np.zeros(4, np.int64), index, 64)
        outputs.append({"logits": np.eye(2)[batch["labels_B"]]} | batch)
    assert task.scores(outputs)["group_accuracy"] == 1.0
    outputs[0]["logits"][1] = outputs[0]["logits"][1, ::-1]
    found = task.scores(outputs)
    assert found["group_accuracy"] == 3 / 4
    assert task.value({f"eval_{name}": value for name, value in found.items()}) == pytest.approx(
        (found["f1"] + 3 / 4) / 2
    )

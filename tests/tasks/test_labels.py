"""Labels in every format: which values are one label, and which are not valid. Expected values follow from JSON, RFC 4180 and Parquet."""

from __future__ import annotations

import csv
import json
import math
import pathlib
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lm_research.config import Config, resolve
from lm_research.errors import DataError
from lm_research.tasks.classification import ClassificationReader
from lm_research.tasks.labels import label_key, label_numbers
from lm_research.tasks.records import Record, read_records
from lm_research.tasks.tagging import TaggingReader

NONE = [None, math.nan, "", "  ", "nan", "NaN", "null"]


def config_of(path: pathlib.Path, **task: str) -> Config:
    return resolve({"task": {"name": "classification", "train": str(path), **task}})


def write(path: pathlib.Path, labels: list[Any]) -> pathlib.Path:
    """A file of records with these labels, in the format of its extension."""
    rows = [{"text": "x", "label": label} for label in labels]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": ["x"] * len(rows), "label": pyarrow.array(labels)}), path)
    else:
        with path.open("w", newline="") as file:
            lines = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            lines.writerows([["text", "label"], *(["x", label] for label in labels)])
    return path


def names(path: pathlib.Path, **task: str) -> list[str]:
    config = config_of(path, **task)
    return ClassificationReader(config).label_names(list(read_records(str(path), config)))


@pytest.mark.parametrize("none", NONE, ids=repr)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_a_missing_label_is_refused_with_its_position(name: str, none: Any, tmp_path: pathlib.Path) -> None:
    labels = [1.0, none, 0.0] if isinstance(none, float) else ["b", none, "a"]
    place = {"a.jsonl": "line 2", "a.json": "record 2", "a.parquet": "row 2"}.get(name, "line 3")
    with pytest.raises(DataError, match=rf"{name}, {place}: field 'label' is .*, not a label"):
        names(write(tmp_path / name, labels))


ONE = [
    [True, "true"],
    ["True", "true", True],
    [1, 1.0, "1", "1.0"],
    [False, "False"],
    [2, "2.00"],
    ["0", 0.0],
    [0, -0.0, "-0.0", "-0"],
]


@pytest.mark.parametrize("forms", ONE, ids=repr)
def test_forms_of_one_label_are_the_same_label(forms: list[Any], tmp_path: pathlib.Path) -> None:
    assert len(names(write(tmp_path / "a.jsonl", [*forms, "other"]))) == 2
    assert len(names(write(tmp_path / "a.csv", [*forms, "other"]))) == 2
    with pytest.raises(DataError, match="has 1 label in field"):
        names(write(tmp_path / "a.json", forms))


def test_names_are_as_written_where_unambiguous(tmp_path: pathlib.Path) -> None:
    assert names(write(tmp_path / "a.csv", ["True", "False", "True"])) == ["False", "True"]
    assert names(write(tmp_path / "a.csv", ["true", "false"])) == ["false", "true"]
    assert names(write(tmp_path / "a.jsonl", [True, False])) == ["False", "True"]
    assert names(write(tmp_path / "a.jsonl", ["1.0", "2.5"])) == ["1.0", "2.5"]
    assert names(write(tmp_path / "a.jsonl", [1.0, 2.5])) == ["1", "2.5"]
    assert names(write(tmp_path / "a.jsonl", ["01", "1", "1.10", "1.1"])) == [
        "01",
        "1",
        "1.1",
        "1.10",
    ]  # codes, versions
    assert names(write(tmp_path / "a.csv", ["null", "nan", "none"]), labels="none,nan,null") == ["none", "nan", "null"]


def test_held_out_labels_in_another_form(tmp_path: pathlib.Path) -> None:
    """Classes 0 and 1 of a training file of texts, and of a held-out one that a column of floats has gone through."""
    config = config_of(tmp_path / "a.jsonl", label_key="label")
    reader, numbers = ClassificationReader(config), label_numbers(["False", "True"])
    assert [reader._target(Record("f", {"label": x}), numbers) for x in (True, "true", "False")] == [1, 1, 0]
    numbers = label_numbers(["0", "1"])
    assert [reader._target(Record("f", {"label": x}), numbers) for x in (1.0, 0, "1.0")] == [1, 0, 1]
    with pytest.raises(DataError, match="has a label twice: '1' and '1.0' are the same"):
        label_numbers(["0", "1", "1.0"])


@pytest.mark.parametrize("value", [[], {}, b"\xff" * 0, math.inf], ids=repr)
def test_what_is_not_a_label(value: Any) -> None:
    assert label_key(value) == ""


SEVERAL = [
    (["a", "b"], ["a", "b"]),
    ([], []),
    ("", []),
    ("a, b,", ["a", "b"]),
    (3, ["3"]),
    ([1.0, True, "1"], ["1", "True"]),
    ('["b", "a"]', ["a", "b"]),
    ("[]", []),
]


@pytest.mark.parametrize(("value", "found"), SEVERAL, ids=repr)
def test_several_labels(value: Any, found: list[str], tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [value, "z"])
    assert names(path, problem_type="multi_label") == sorted([*found, "z"])


@pytest.mark.parametrize(
    "value", [None, math.nan, ["a", None], ["a", math.nan], ["a", " "], [["a"]], {"a": 1}, "nan"], ids=repr
)
def test_what_is_not_a_list_of_labels(value: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="line 2: field 'label' is .*, not a label"):
        names(write(tmp_path / "a.jsonl", ["z", value]), problem_type="multi_label")


def test_a_set_without_any_label_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="has 0 labels in field 'label' .none.; nothing can be learned"):
        names(write(tmp_path / "a.jsonl", [[], [], ""]), problem_type="multi_label")


@pytest.mark.parametrize("tag", NONE, ids=repr)
def test_a_missing_tag_is_refused(tag: Any) -> None:
    config = resolve({"task": {"name": "tagging", "train": "f", "text_key": "words", "label_key": "labels"}})
    records = [
        Record(f"f.jsonl, line {n}", {"words": ["a", "b"], "labels": ["O", one]}) for n, one in enumerate(["O", tag], 1)
    ]
    with pytest.raises(
        DataError, match="f.jsonl, line 2 has the word 'b' with the tag .*, and a tag is a name or a number"
    ):
        TaggingReader(config).label_names(records)


def test_tags_of_one_kind() -> None:
    config = resolve({"task": {"name": "tagging", "train": "f", "text_key": "words", "label_key": "labels"}})
    records = [Record("f", {"words": ["a", 2, 0.5, "b"], "labels": [1, 1.0, "1", "0"]})]
    assert TaggingReader(config).label_names(records) == ["0", "1"]
    assert TaggingReader(config).texts(records[0]) == ["a 2 0.5 b"]
    with pytest.raises(DataError, match="the word None"):
        TaggingReader(config).label_names([Record("f", {"words": [None], "labels": ["O"]})])

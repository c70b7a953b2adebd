"""Labeled records in every form, and the messages for those that are wrong."""

from __future__ import annotations

import json
import pathlib

import pyarrow
import pytest
from pyarrow import parquet

from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks import dataset
from lm_research.tasks import records as records_module
from lm_research.tasks.classification import ClassificationReader
from lm_research.tasks.embedding import EmbeddingReader
from lm_research.tasks.records import Record, read_records
from lm_research.tasks.tagging import TaggingReader

ROWS = [{"text": 'He said "no", then', "label": "a"}, {"text": "Zürich\tlies there", "label": "b"}]


def fields(path: pathlib.Path) -> list[dict]:
    return [record.fields for record in read_records(str(path), resolve({}))]


def test_json_lines_and_lists(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=1))
    assert fields(tmp_path / "a.jsonl") == ROWS
    assert fields(tmp_path / "b.json") == ROWS


def test_tables(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"He said ""no"", then",a\nZürich\tlies there,b\n')
    assert fields(tmp_path / "a.csv") == ROWS
    (tmp_path / "a.tsv").write_text('text\tlabel\nHe said "no", then\ta\n')
    assert fields(tmp_path / "a.tsv") == ROWS[:1]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_without_a_header_line(tmp_path: pathlib.Path, suffix: str) -> None:
    """As STS-B's files: the columns are named, further ones are dropped, and pairs without a score are left out on request."""
    comma = {"csv": ",", "tsv": "\t"}[suffix]
    path = tmp_path / f"a.{suffix}"
    path.write_text("\n".join(comma.join(row) for row in (("2.5", "a", "b"), ("", "c", "d", "more"))) + "\n")
    task = {"name": "embedding", "problem_type": "regression", "columns": "score,text,other", "label_key": "score"}
    config = resolve({"task": {**task, "pair_key": "other", "train": str(path)}})
    assert [record.fields for record in read_records(str(path), config)] == [
        {"score": "2.5", "text": "a", "other": "b"},
        {"score": "", "text": "c", "other": "d"},
    ]
    log: list[str] = []
    labeled = resolve({"task": {**task, "pair_key": "other", "train": str(path), "skip_unlabeled": True}})
    (kept,) = dataset._read(str(path), labeled, EmbeddingReader(labeled), log.append)
    assert kept.where == f"{path}, line 1" and log == [f"{path}: 1 of 2 records have no label and are left out"]
    path.write_text(f"1{comma}a\n")
    with pytest.raises(DataError, match="line 1 has 2 columns, but config.task.columns names 3: score, text, other"):
        list(read_records(str(path), config))


def test_parquet(tmp_path: pathlib.Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert fields(tmp_path / "a.parquet") == ROWS


def test_columns(tmp_path: pathlib.Path) -> None:
    """The form of CoNLL-2003: four columns, -DOCSTART- lines, blank lines between sentences."""
    (tmp_path / "a.conll").write_text(
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER"
    )
    records = list(read_records(str(tmp_path / "a.conll"), resolve({})))
    assert [record.fields for record in records] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    ]
    assert [record.where.split(", ")[-1] for record in records] == ["line 3", "line 7"]


WRONG = {
    "no JSON": ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
    "no object": ("a.jsonl", '["x"]\n', "record 1 holds a JSON str"),
    "short row": ("a.csv", "text,label\nx,a\ny\n", "a.csv, line 3 has 1 columns, but the first row has 2"),
    "open quote": ("a.csv", 'text,label\nx,a\n"y,b\n', "a.csv, line 3 is not a row"),
    "one column": ("a.conll", "EU B-ORG\nrejects\n", "a.conll, line 2 has one column"),
    "not parquet": ("a.parquet", "text", "a.parquet is not a Parquet file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_cannot_be_read(case: str, tmp_path: pathlib.Path) -> None:
    name, content, message = WRONG[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        fields(tmp_path / name)


def test_parallel_files(tmp_path: pathlib.Path) -> None:
    """Line by line; the longer of two files is named, with its first line that has no partner."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nb\n")
    two.write_text("c\nd")
    found = list(read_records(f"lines:{one},{two}", resolve({})))
    assert [list(record.fields.values()) for record in found] == [["a", "c"], ["b", "d"]]
    assert [record.where for record in found] == [f"{one}, line 1", f"{one}, line 2"]
    for longer, shorter in ((one, two), (two, one)):
        longer.write_text("a\nb\nc\n")
        shorter.write_text("a\n")
        with pytest.raises(DataError, match=f"{longer}, line 2 has no partner: {shorter} ends after line 1"):
            list(read_records(f"lines:{one},{two}", resolve({})))
    for source in (f"{one}", f"{one},", f"{one},{two},{one}"):
        with pytest.raises(DataError, match="does not name two files"):
            list(read_records(f"lines:{source}", resolve({})))


def test_a_json_value_is_read_up_to_the_longest_text(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[\n{"text": "x", "label": "a"}\n]'  # 33 characters
    (tmp_path / "a.json").write_text(text)
    monkeypatch.setattr(records_module, "LONGEST", len(text))
    assert fields(tmp_path / "a.json") == [{"text": "x", "label": "a"}]
    monkeypatch.setattr(records_module, "LONGEST", len(text) - 1)
    with pytest.raises(DataError, match="a.json, line 3: a JSON value must be read as a whole"):
        fields(tmp_path / "a.json")


def records(*rows: dict) -> list[Record]:
    return [Record(f"f.jsonl, line {number}", row) for number, row in enumerate(rows, 1)]


def classes(rows: list[Record], **task: str) -> list[str]:
    return ClassificationReader(resolve({"task": {"name": "classification", "train": "f.jsonl", **task}})).label_names(
        rows
    )


def test_label_names() -> None:
    assert classes(records({"label": 10}, {"label": 9}, {"label": 10})) == ["9", "10"]  # numbers in their order
    assert classes(records({"label": "b"}, {"label": "a"}), labels="b, a") == ["b", "a"]
    assert classes(records({"label": "x,y"}, {"label": ["z"]}), problem_type="multi_label") == ["x", "y", "z"]
    assert classes(records({"label": 0.5}), problem_type="regression") == []


LABELS = {
    "missing field": (records({"lable": "a"}), {}, "line 1 has no field 'label'. Did you mean 'lable'.*task.label_key"),
    "empty": (records({"label": "a"}, {"label": " "}), {}, "line 2: field 'label' is ' ', not a label"),
    "list": (records({"label": ["a"]}), {}, "task.problem_type=multi_label"),
    "one class": (records({"label": "a"}, {"label": "a"}), {}, "has 1 label in field 'label'"),
    "unknown": (
        records({"label": "a"}, {"label": "c"}),
        {"labels": "a,b"},
        "line 2 has the label 'c', which is not in",
    ),
    "empty class": (records({"label": "a"}, {"label": "b"}), {"labels": "a,b,c"}, "no record with the label 'c'"),
    "twice": (records({"label": "a"}), {"labels": "a,b,a"}, "has a label twice"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_are_wrong(case: str) -> None:
    rows, task, message = LABELS[case]
    with pytest.raises(DataError, match=message):
        classes(rows, **task)


TAGS = {
    "misaligned": ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1 has 2 words and 1 tags"),
    "not a list": ({"tokens": "a b", "tags": ["O"]}, "task.text_key is 'a b', not a list"),
    "no words": ({"tokens": [], "tags": []}, "has no words"),
}


@pytest.mark.parametrize("case", TAGS)
def test_tags_that_are_wrong(case: str) -> None:
    row, message = TAGS[case]
    config = resolve({"task": {"name": "tagging", "train": "f", "text_key": "tokens", "label_key": "tags"}})
    with pytest.raises(DataError, match=message):
        TaggingReader(config).label_names(records(row))


def test_a_key_with_a_dot_reads_a_nested_field() -> None:
    record = Record("a.jsonl, line 3", {"say": {"de": "ja", "en": "yes"}, "plain": "yes", "with.dot": "own"})
    assert record.text("say.de", "text_key") == "ja"
    assert record.text("plain.de", "text_key") == "yes"
    assert record.text("with.dot", "text_key") == "own"
    with pytest.raises(DataError, match="a.jsonl, line 3, say has no field 'fr'.*--config.task.text_key"):
        record.text("say.fr", "text_key")


@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_a_cell_of_many_brackets_is_a_text_or_invalid(tmp_path: pathlib.Path, problem_type: str) -> None:
    """Python's own JSON reader raises RecursionError for it."""
    (tmp_path / "a.csv").write_text(f"text,label\nx,{'[' * 100_000}\n")
    (record,) = read_records(str(tmp_path / "a.csv"), resolve({}))
    reader = ClassificationReader(resolve({"task": {"name": "classification", "problem_type": problem_type}}))
    if problem_type == "multi_label":
        assert reader._given(record) == ["[" * 100_000]
    else:
        with pytest.raises(DataError, match="line 2"):
            reader._values(record)

"""Invalid suites: bombs, depth, cycles, wrong types and invalid folder names give one paragraph in every format."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import pytest

from lm_research.errors import ConfigError
from lm_research.evaluation import runner
from lm_research.evaluation.suite import Entry, load_suite

KINDS = {"classification": None}
GOOD = {"name": "a", "task": "classification", "data": "x.jsonl"}
# Ten aliases in each of nine levels expand to 10**9 values.
BOMB = (
    "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    + "tasks: *a9\n"
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", BOMB),
        ("s.yaml", "tasks: &a [*a]"),
        ("s.yaml", "[" * 5000),
        ("s.yaml", "tasks: !!python/object:os.system []"),
        ("s.yaml", "{" * 50),
        ("s.yaml", "tasks: !!int x"),
        ("s.yaml", "? [a]\n: b"),
        ("s.yaml", "tasks: [1]"),
        ("s.yaml", "\0"),
        ("s.json", "[" * 100_000),
        ("s.json", '{"a":' * 2000),
        ("s.json", "[" + "9" * 5000 + "]"),
        ("s.json", "null"),
        ("s.json", ""),
        ("s.py", "import sys; sys.exit(0)"),
        ("s.py", "TASKS = []; TASKS.append(TASKS)"),
        ("s.py", "x = 1\0"),
        ("s.py", "TASKS = 3"),
    ],
    ids=range(18),
)
def test_what_is_not_a_suite(name: str, text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name) as caught:
        load_suite(str(tmp_path / name), KINDS)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"name": "x" * 300},
        {"name": "../x"},
        {"name": ["a"]},
        {"task": []},
        {"data": {}},
        {"data": "a\0b"},
        {"data": "x" * 300},
        {"labels": 3},
        {"labels": [["a"]]},
        {"labels": {"a": 1}},
        {"max_length": -1},
        {"max_length": 2**40},
        {"max_length": 1.5},
        {"max_length": True},
        {"text_key": 3},
        {"doc_stride": "x"},
        {"doc_stride": 10**30},
        {"normalize": 1},
        {"prompt": "\ud800"},
        {"metric": []},
        {"nosuch" * 5000: 1},
    ],
    ids=range(22),
)
def test_an_invalid_key(changes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.py").write_text(f"TASKS = [{GOOD | changes!r}]")
    with pytest.raises(ConfigError, match="task") as caught:
        load_suite(str(tmp_path / "s.py"), KINDS)
    assert len(str(caught.value)) < 40_000


def test_a_valid_suite(tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps([GOOD | {"labels": [0, "b"], "max_length": 7}]))
    (entry,) = load_suite(str(tmp_path / "s.json"), KINDS)
    assert (entry.labels, entry.max_length) == (("0", "b"), 7)


def test_packages_of_scores_are_sought_before_the_first_text_is_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need the packages sacrebleu and rouge-score. "):
        runner.run(runner.EvalJob([Entry("x", "seq2seq", "x.jsonl")], ["absent"], tmp_path), print)

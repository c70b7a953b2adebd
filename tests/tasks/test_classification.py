"""Losses of classification against arithmetic: class weights, label smoothing, several labels and values; and when a run stops early."""

from __future__ import annotations

import json
import math
import os
import pathlib
import string
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research import prepare
from lm_research.config import resolve
from lm_research.errors import ConfigError, DataError
from lm_research.evaluation import suite
from lm_research.run.evaluator import Evaluator
from lm_research.tasks import TASKS, dataset
from lm_research.tasks.classification import Classification, class_weights
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.records import Record

NAMES = ("bad", "fair", "good")
TRAIN = np.array([0] * 6 + [1] * 3 + [2], np.int32)  # 10 records
# Shares of each class: 1/4, 1/4, 1/2 in the first and second row; 1/3 each in the third; the last row is empty.
LOGITS = np.log(np.array([[1, 1, 2], [1, 1, 2], [1, 1, 1], [1, 5, 1]], np.float32))
ROWS = {
    "labels_B": np.array([2, 0, 1, 1]),
    "row_weights_B": np.array([1.0, 1, 1, 0], np.float32),
    "segments_BL": np.ones((4, 5), np.int32),
}


def loss(
    labels: Any = ROWS["labels_B"], logits: np.ndarray = LOGITS, names: tuple[str, ...] = NAMES, **task: Any
) -> float:
    """Through the task's own sums and totals."""
    config = resolve({"task": {"name": "classification", "train": "x.jsonl", **task}})
    corpus = types.SimpleNamespace(tokenizer=None, labels=names, arrays={"train": {"labels": TRAIN}})
    found = Classification(config, corpus).objective
    batch = {name: jnp.asarray(x) for name, x in (ROWS | {"labels_B": np.asarray(labels)}).items()}
    return float(found.loss(found.logit_sums(jnp.asarray(logits), batch), found.normalizers(batch)))


def test_the_mean_over_records() -> None:
    assert loss() == pytest.approx((math.log(2) + math.log(4) + math.log(3)) / 3, rel=1e-6)


def test_label_smoothing() -> None:
    """Szegedy et al. 2015, section 7: (1 - e) of the label and e / 3 of each class."""
    spread = (2 * math.log(4) + math.log(2)) / 3
    rows = [0.7 * math.log(2) + 0.3 * spread, 0.7 * math.log(4) + 0.3 * spread, math.log(3)]
    assert loss(label_smoothing=0.3) == pytest.approx(sum(rows) / 3, rel=1e-6)


def test_balanced_classes() -> None:
    """10 / (3 x 6), 10 / (3 x 3) and 10 / (3 x 1): a mean by those weights, and over the training set every class weighs alike."""
    weights = class_weights("balanced", NAMES, TRAIN)
    assert weights == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert [weights[c] * (TRAIN == c).sum() for c in range(3)] == pytest.approx([10 / 3] * 3)
    assert weights[TRAIN].mean() == pytest.approx(1.0)
    bad, fair, good = weights
    expected = (good * math.log(2) + bad * math.log(4) + fair * math.log(3)) / (good + bad + fair)
    assert loss(class_weights="balanced") == pytest.approx(expected, rel=1e-6)


def test_weights_by_name() -> None:
    expected = (2.5 * math.log(2) + 0.5 * math.log(4) + 0.0) / 3.0
    assert loss(class_weights="good=2.5, bad=0.5,fair=0") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "text", ["good=1,bad=1", "good=1,bad=1,fair=-1", "good=1,bad=1,fair=x", "balance", "good=0,bad=0,fair=0"]
)
def test_invalid_weights(text: str) -> None:
    with pytest.raises(ConfigError, match="class_weights=.* Write, with your numbers, bad=1,fair=1,good=1."):
        loss(class_weights=text)


def test_several_labels_and_values() -> None:
    """A label of probability 1/2 costs ln 2 either way, one of 3/4 ln 4/3 or ln 4; values cost the square of the difference."""
    logits = np.log(np.array([[1, 3], [1, 3], [1, 1], [9, 9]], np.float32))
    given = [[1, 1], [0, 0], [0, 1], [1, 1]]
    expected = (math.log(2) + math.log(4 / 3) + math.log(2) + math.log(4) + 2 * math.log(2)) / 2 / 3
    assert loss(given, logits, ("a", "b"), problem_type="multi_label") == pytest.approx(expected, rel=1e-6)
    values = np.array([[1.0], [2.0], [-1.0], [50.0]], np.float32)
    assert loss(np.array([1.5, 2.0, 1.0, 0.0], np.float32), values, (), problem_type="regression") == pytest.approx(
        (0.25 + 0 + 4) / 3
    )
    two = np.array([[1.0, 3.0], [2.0, 2.0], [-1.0, 0.0], [50.0, 0.0]], np.float32)  # of several the mean counts
    given = np.array([[1.5, 2.0], [2.0, 5.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    assert loss(given, two, (), problem_type="regression") == pytest.approx(((0.25 + 1) + (0 + 9) + (4 + 0)) / 2 / 3)
    one = np.log(np.array([[3], [3], [1], [9]], np.float32))  # a label that a record has or lacks
    assert loss([[1], [0], [1], [1]], one, ("a",), problem_type="multi_label") == pytest.approx(
        (math.log(4 / 3) + math.log(4) + math.log(2)) / 3, rel=1e-6
    )


@pytest.mark.parametrize(
    ("keys", "records", "labels", "names"),
    [
        ("label", [{"label": [1, 2.5]}, {"label": [0, -1]}, {"label": "[3, 4]"}], [[1, 2.5], [0, -1], [3, 4]], ()),
        ("joy, fear", [{"joy": 1, "fear": "2.5"}, {"joy": 0, "fear": -1}], [[1, 2.5], [0, -1]], ("joy", "fear")),
        ("label", [{"label": "1.5"}, {"label": 2}], [1.5, 2], ()),
        ("label", [{"label": [1.5]}, {"label": 2}], [[1.5], [2]], ()),  # as the first record has it
        ("label", [{"label": 1.5}, {"label": "[2]"}], [1.5, 2], ()),
    ],
)
def test_values_of_records(
    keys: str, records: list[dict[str, Any]], labels: list[Any], names: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    """A list, or fields of one value each, which name the outputs; a list of one equals a single value."""
    held = tmp_path / "held.jsonl"
    for path in (tmp_path / "a.jsonl", held):
        path.write_text("".join(json.dumps({"text": string.ascii_letters} | record) + "\n" for record in records))
    task = {"name": "classification", "problem_type": "regression", "label_key": keys}
    config = resolve(
        {
            "task": {**task, "train": str(tmp_path / "a.jsonl"), "validation": str(held)},
            "tokenizer": {"type": "wordpiece", "vocab_size": 64},
        }
    )
    kind = TASKS["classification"]
    corpus = open_labeled(config, tmp_path / "run", kind.reader(config), lambda line: None)
    assert corpus.arrays["train"]["labels"].tolist() == labels and corpus.labels == names
    said = kind(config, corpus).update_hf_config({})
    outputs = np.size(labels[0])
    assert said["problem_type"] == "regression" and kind.num_labels(config, corpus) == outputs
    assert list(said["id2label"].values()) == list(names or [f"LABEL_{i}" for i in range(outputs)])


def test_records_with_other_numbers_of_values(tmp_path: pathlib.Path) -> None:
    records = [Record("a.jsonl, line 1", {"label": [1, 2]}), Record("a.jsonl, line 2", {"label": [1, 2, 3]})]
    reader = TASKS["classification"].reader(
        resolve({"task": {"name": "classification", "train": "a.jsonl", "problem_type": "regression"}})
    )
    with pytest.raises(DataError, match="line 2: field 'label' has 3 values, but earlier records have 2"):
        [reader._values(record) for record in records]


@pytest.mark.parametrize(
    ("patience", "accuracies", "ends"),
    [
        (2, [0.5, 0.6, 0.6], False),
        (2, [0.5, 0.6, 0.6, 0.55], True),
        (2, [0.5, 0.6, 0.6, 0.61], False),
        (0, [0.5] * 9, False),
        (1, [0.5, 0.5], True),
        (3, [0.9, 0.1, 0.2, 0.3], True),
    ],
)
def test_patience(patience: int, accuracies: list[float], ends: bool) -> None:
    """It ends once that many evaluations in a row did not exceed the best before them."""
    state = types.SimpleNamespace(patience=patience, ranks=[-value for value in accuracies])
    assert Evaluator.exhausted.fget(state) == ends


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "name",
    ["train.npz", "validation.npz", "labels.json", "validation.jsonl", "train/tokens.bin", "digests.json"],
)
def test_a_damaged_data_set_is_reported_and_rebuilt(
    name: str, old: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`old`: as an earlier version made it, without digests of its files; then only NumPy or JSON detect damage."""
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} {string.ascii_letters}", "label": f"l{i % 2}"}) + "\n" for i in range(40))
    )
    task = {"name": "classification", "train": str(tmp_path / "a.jsonl"), "group_key": "text"}
    (tmp_path / "config.json").write_text(
        json.dumps({"task": task, "tokenizer": {"type": "wordpiece", "vocab_size": 64}})
    )
    arguments = [f"--config={tmp_path}/config.json", f"--workdir={tmp_path}/run"]
    assert prepare.main(arguments) == 0
    (folder,) = (tmp_path / "run/data").iterdir()
    whole = (folder / name).read_bytes()
    if old:
        (folder / "digests.json").unlink()
    (folder / name).write_bytes(whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :])
    capsys.readouterr()
    assert prepare.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "is damaged" in shown and f"moved to {folder}.damaged" in shown
    assert (old and "json" not in name) or name.split("/")[-1] in shown
    assert (folder / "digests.json").is_file() and (folder / name).stat().st_size == len(whole)
    (folder / name).unlink()
    os.mkfifo(folder / name)  # which is reported, without waiting for a writer
    assert prepare.main(arguments) == 0
    assert f"{folder / name} is a named pipe" in capsys.readouterr().out and (folder / name).is_file()


def test_a_finished_model_is_evaluated_without_settings_of_its_training() -> None:
    """Of a suite's task: weights of classes are a setting of the loss, the separator of labels one of the data."""
    keys = TASKS.keys("classification").keys()
    assert {"train", "class_weights", "label_smoothing"} <= keys - suite._task_keys()
    assert {"label_separator", "group_key"} <= suite._task_keys()


def scored(
    kind: str, names: tuple[str, ...], logits: Any, labels: Any, **settings: Any
) -> tuple[Any, list[dict[str, Any]], str]:
    """The inputs of metrics, the predictions and the baseline; the last of the rows is padding."""
    config = resolve({"task": {"name": "classification", "train": "x.jsonl", "problem_type": kind} | settings})
    arrays = {part: {"labels": np.array(labels[:-1])} for part in ("train", "validation")}
    task = Classification(config, types.SimpleNamespace(tokenizer=None, labels=names, arrays=arrays))
    weights = np.array([1.0] * (len(labels) - 1) + [0.0], np.float32)
    outputs = [{"logits": np.array(logits, np.float32), "labels_B": np.array(labels), "row_weights_B": weights}]
    return task.scored(outputs).columns, list(task.predictions(outputs)), task.baseline()


def test_several_labels_are_those_above_a_probability_of_one_half() -> None:
    logits, labels = [[2.0, -1.0], [-0.5, -3.0], [9.0, 9.0]], [[1, 1], [0, 0], [1, 1]]
    inputs, found, baseline = scored("multi_label", ("a", "b"), logits, labels)
    assert inputs["predictions"].tolist() == [[True, False], [False, False]]
    assert inputs["references"].tolist() == [[True, True], [False, False]]
    assert found == [{"label": ["a", "b"], "prediction": ["a"]}, {"label": [], "prediction": []}]
    assert baseline == "1 labels a record on average"


def test_a_lower_threshold_predicts_more_labels() -> None:
    """Odds of 3 to 7 are a probability of 0.3."""
    logits = np.log([[3.1 / 7, 2.9 / 7], [3.1 / 7, 1.1], [1, 1]])
    inputs, found, _ = scored("multi_label", ("a", "b"), logits, [[1, 1], [0, 1], [0, 0]], label_threshold=0.3)
    assert inputs["predictions"].tolist() == [[True, False], [True, True]]
    assert [one["prediction"] for one in found] == [["a"], ["a", "b"]]


def test_values_keep_the_shape_of_their_labels() -> None:
    """The mean of 1 and 4 is 2.5, of which both are 1.5: 2.25."""
    inputs, found, baseline = scored("regression", (), [[1.5], [3.0], [9.0]], [1.0, 4.0, 0.0])
    assert inputs["predictions"].tolist() == [1.5, 3.0] and inputs["references"].tolist() == [1.0, 4.0]
    assert found == [{"label": 1.0, "prediction": 1.5}, {"label": 4.0, "prediction": 3.0}]
    assert baseline == "always the mean: squared error 2.25"


def test_one_label_has_its_probability() -> None:
    """Scores of log 3 and log 1 are probabilities of 3/4 and 1/4."""
    logits = np.log([[3, 1], [1, 1], [1, 3], [1, 9]])
    inputs, found, baseline = scored("single_label", ("a", "b"), logits, [0, 1, 1, 0])
    assert (inputs["predictions"].tolist(), inputs["references"].tolist(), inputs["num_labels"]) == (
        [0, 0, 1],
        [0, 1, 1],
        2,
    )
    assert [(one["label"], one["prediction"], one["probability"]) for one in found] == [
        ("a", "a", 0.75),
        ("b", "a", 0.5),
        ("b", "b", 0.75),
    ]
    assert baseline == "always 'b': accuracy 0.6667"


def test_files_without_records_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " ", "label": "a"}\n' * 2)
    task = {"task": {"name": "classification", "train": str(path)}, "data": {"on_error": "skip"}}
    config, log = resolve(task), list[str]()
    reader = types.SimpleNamespace(is_valid=lambda record: record.fields["text"].strip())
    with pytest.raises(DataError, match="a.jsonl holds no records"):
        dataset._read(str(path), config, reader, log.append)
    assert log == [f"{path}: 2 of 2 records are empty and left out"]

"""Sentences that are longer than a row: tagged in windows without losing a word; or cut, with O for the lost tags."""

from __future__ import annotations

import json
import pathlib
import string
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_pipelines import write_model
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.tasks import TASKS
from lm_research.tasks.base import Task
from lm_research.tasks.dataset import IGNORED, open_labeled

TAGS = ["O", "B-A", "I-A"]
LONG = "z" * 40  # more pieces than fit in a row of 16, if no word is one piece
RECORDS = [
    {"words": list("abcdefghij") * 4, "tags": [TAGS[n % 3] for n in range(40)]},
    {"words": ["a", "b"], "tags": ["O", "B-A"]},
    {"words": ["a", LONG, "b"] * 5, "tags": ["B-A", "I-A", "O"] * 5},
]


def opened(folder: pathlib.Path, **task: Any) -> tuple[Task, list[str]]:
    """A data set of rows of 16 tokens whose held-out part is RECORDS; and its log."""
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(text)
    (folder / "alphabet.jsonl").write_text(json.dumps({"words": [string.ascii_letters], "tags": ["O"]}) + "\n" + text)
    keys = {"text_key": "words", "label_key": "tags", "validation": str(folder / "b.jsonl"), "doc_stride": 4}
    config = resolve(
        {
            "task": {"name": "tagging", "train": str(folder / "alphabet.jsonl"), **keys, **task},
            "tokenizer": {"type": "wordpiece", "vocab_size": 64},
            "data": {"max_length": 16},
        }
    )
    kind, log = TASKS["tagging"], []
    return kind(config, open_labeled(config, folder / "run", kind.reader(config), log.append)), log


def outputs(task: Task) -> list[dict[str, np.ndarray]]:
    """The outputs of an evaluation, in batches of three rows, for a model that is always right."""
    rows = task.examples(task.corpus.validation, "final")
    found = []
    for start in range(0, rows.num_examples, 3):
        index = np.arange(start, start + 3)
        batch = rows.batch(np.zeros(3, int), np.where(index < rows.num_examples, index, -1))
        kept = {name: batch[name] for name in ("labels_BL", "window_B", "row_weights_B")}
        found.append(kept | {"chosen_BL": np.where(batch["labels_BL"] == IGNORED, 1, batch["labels_BL"])})
    return found


def test_no_word_is_lost(tmp_path: pathlib.Path) -> None:
    task, log = opened(tmp_path)
    rows = outputs(task)
    assert sum(len(one["window_B"]) for one in rows) > len(RECORDS) and "more windows" in " ".join(log)
    found = list(task.predictions(rows))
    assert [one["label"] for one in found] == [one["tags"] for one in RECORDS]
    assert [one["prediction"] for one in found] == [one["tags"] for one in RECORDS]
    assert task.scores(rows)["accuracy"] == task.scores(rows)["f1"] == 1.0
    learned = task.corpus.arrays["train"]["labels"]
    words = sum(len(record["words"]) for record in RECORDS) + 1
    assert (learned != IGNORED).sum() == words  # each once


def test_words_that_are_cut_off_count_as_o(tmp_path: pathlib.Path) -> None:
    """Of 16 tokens two are special, so 14 of 40 words of one piece are read; of the third record "a" and the long word."""
    task, log = opened(tmp_path, long_sentences="cut")
    rows = outputs(task)
    found = list(task.predictions(rows))
    assert [one["label"] for one in found] == [one["tags"] for one in RECORDS]
    assert [one["prediction"] for one in found] == [
        RECORDS[0]["tags"][:14] + ["O"] * 26,
        RECORDS[1]["tags"],
        ["B-A", "I-A"] + ["O"] * 13,
    ]
    right = sum(a == b for one in found for a, b in zip(one["label"], one["prediction"], strict=True))
    assert task.scores(rows)["accuracy"] == pytest.approx(right / 57)
    assert any("39 words are past data.max_length=16: their tags count as O" in line for line in log)


def test_evaluate_and_pipelines_read_all_words(tmp_path: pathlib.Path) -> None:
    """A model of 40 positions, a sentence of 90 words: far from a window's ends its tags are those of the beginning only."""
    write_model("tags", tmp_path / "model")
    words = ("the king of spain visit the old river in march " * 9).split()
    (tmp_path / "a.jsonl").write_text(json.dumps({"words": words, "tags": ["O"] * 90}) + "\n")
    tagger = lm_research.pipeline("token-classification", model=tmp_path / "model", ignore_labels=[])
    whole, short = tagger([" ".join(words), "the king"])
    assert [one["word"] for one in whole] == words and [one["index"] for one in whole] == list(range(1, 91))
    assert " ".join(words)[whole[-1]["start"] : whole[-1]["end"]] == "march" and len(short) == 2
    beginning = tagger(" ".join(words[:38]))  # the first window's words, including half of its overlap with the next
    for one, other in zip(whole[:28], beginning, strict=False):
        assert one["entity"] == other["entity"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    (tmp_path / "suite.json").write_text(
        json.dumps(
            [
                {
                    "name": "all",
                    "task": "tagging",
                    "data": str(tmp_path / "a.jsonl"),
                    "text_key": "words",
                    "label_key": "tags",
                },
            ]
        )
    )
    given = [
        f"--model={tmp_path}/model",
        f"--suite={tmp_path}/suite.json",
        f"--output={tmp_path}/out",
        "--resamples=10",
    ]
    assert evaluate.main(given) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out/all/predictions.jsonl").read_text().splitlines()]
    assert row["prediction"] == [one["entity"] for one in whole]

"""Question answering through the real command: questions about contexts that need several windows."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest
from train_helpers import ROOT, call, summary

import lm_research
from lm_research.config import resolve
from lm_research.data.hf_tokenizer import load_tokenizer
from lm_research.tasks import TASKS, squad
from lm_research.tasks.labelled import open_labelled

KINDS = {"Where": "north south east west".split(), "When": "dawn noon dusk night".split()}
FILLER = "and then they went over the hill with all their gold".split()
TINY = {
    "model.num_layers": 1, "model.hidden_size": 32, "model.num_heads": 2, "model.intermediate_size": 64,
    "model.max_length": 32, "model.dropout_rate": 0.0, "model.attention_dropout_rate": 0.0, "data.max_length": 32,
    "tokenizer.kind": "wordpiece", "tokenizer.vocab_size": 80, "optimizer.learning_rate": 1e-2, "train.num_epochs": 5,
    "train.batch_size": 32, "logging.trackers": "none", "logging.every_steps": 50, "task.stride": 8, "task.n_best": 3,
    "task.max_answer_length": 3,
}  # fmt: skip


def document(articles: int, seed: int) -> dict[str, Any]:
    """SQuAD's form. A context has a place, a time or both among 10 to 50 other words; the question asks for either."""
    draw = random.Random(seed)
    data = []
    for number in range(articles):
        text = [draw.choice(FILLER) for _ in range(draw.randint(10, 50))]
        asked = draw.choice([["Where"], ["When"], ["Where", "When"], ["Where", "When"]])
        for place, kind in zip(draw.sample(range(len(text)), len(asked)), asked, strict=True):
            text[place] = draw.choice(KINDS[kind])
        context, qas = " ".join(text) + ".", []
        for kind, words in KINDS.items():
            answers = [{"text": word, "answer_start": f" {context}".index(f" {word}")} for word in words if word in text]
            qas.append({"id": f"{seed}-{number}-{kind}", "question": f"{kind} did they go?", "answers": answers})
            qas[-1]["is_impossible"] = not answers
        data.append({"title": "t", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0", "data": data}


def train(workdir: pathlib.Path, **keys: Any) -> int:
    flags = [f"--config.{key}={value}" for key, value in (TINY | keys).items()]
    return call([f"--config={ROOT}/configs/finetune/question_answering.py", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("squad")
    for name, given in (("train", (250, 0)), ("dev", (25, 1)), ("test", (9, 2))):
        (folder / f"{name}.json").write_text(json.dumps(document(*given), indent=1 if name == "dev" else None))
    return {
        "task.train": folder / "train.json", "task.validation": folder / "dev.json", "task.test": folder / "test.json",
        "data.cache_dir": folder / "cache",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run to be read only."""
    workdir = tmp_path_factory.mktemp("runs") / "answers"
    assert train(workdir, **files) == 0
    return workdir


def predictions(run: pathlib.Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"predictions_{part}.jsonl").read_text().splitlines()]


def test_it_learns(run: pathlib.Path) -> None:
    print(summary(run))
    print(predictions(run, "test")[:2])
    print((run/"log.txt").read_text())
    found = summary(run)["validation"]
    assert found["eval_f1"] > 0.9 

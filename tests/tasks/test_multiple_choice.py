"""Multiple choice through the real command, its batches, and records that cannot be used."""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.train_helpers import ROOT, call, summary
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled

WORDS = "river stone bread water light night sheep field".split()
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.init_std": 0.1,
    "model.max_length": 32,
    "model.dropout_rate": 0.0,
    "model.attention_dropout_rate": 0.0,
    "data.max_length": 32,
    "tokenizer.type": "wordpiece",
    "tokenizer.vocab_size": 64,
    "optimizer.learning_rate": 5e-3,
    "train.num_epochs": 6,
    "train.batch_size": 16,
    "logging.trackers": "none",
    "logging.every_steps": 50,
}


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Two to four choices of three words; the right one has "gold" in it. Answers are letters of seed 0, else numbers."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        choices = [[draw.choice(WORDS) for _ in range(3)] for _ in range(draw.randint(2, 4))]
        label = draw.randrange(len(choices))
        choices[label][draw.randrange(3)] = "gold"
        texts = [" ".join(choice) for choice in choices]
        rows.append({"question": "what is there", "choices": texts, "label": label if seed else "ABCD"[label]})
    return rows


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_it_learns_and_the_exported_model_agrees(tmp_path: pathlib.Path) -> None:
    keys = TINY | {"task.train": write(tmp_path / "a.jsonl", questions(160, 0))}
    keys |= {"task.validation": write(tmp_path / "b.jsonl", questions(37, 1)), "train.accumulation_steps": 2}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    run = tmp_path / "run"
    assert call([f"--config={ROOT}/configs/finetune/multiple_choice.py", f"--workdir={run}", *flags]) == 0
    assert summary(run)["validation"]["eval_accuracy"] > 0.95  # guessing: about 0.36
    rows = [json.loads(line) for line in (run / "predictions_validation.jsonl").read_text().splitlines()]
    lm = lm_research.from_pretrained(run / "model")
    assert lm.head == "multiple_choice" and len(rows) == 37
    for row, given in zip(rows[:12], questions(37, 1), strict=False):
        texts = [f"{given['question']} {choice}" for choice in given["choices"]]
        assert row["text"] == "\n".join([given["question"], *given["choices"]])
        encoded = lm.tokenizer([given["question"]] * len(texts), given["choices"], padding="max_length", max_length=16)
        logits = np.asarray(lm(**{name: x[None] for name, x in encoded.items()})["logits"])[0]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert row["prediction"] == logits.argmax() and row["probability"] == pytest.approx(shares.max(), abs=1e-5)
    task = {"name": "gold", "task": "multiple_choice", "data": str(tmp_path / "b.jsonl"), "text_key": "question"}
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={run}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main(given) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["gold"]["scores"]
    assert scores["accuracy"]["mean"] == pytest.approx(summary(run)["validation"]["eval_accuracy"])


def corpus_of(
    folder: pathlib.Path, rows: list[dict[str, Any]], log: Callable[[str], None] = lambda line: None, **keys: str
) -> tuple[Any, Any]:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = str(write(folder / "a.jsonl", rows))
    task = {"name": "multiple_choice", "text_key": "question", "train": file, "validation": file} | keys
    config = resolve({"task": task, "data": {"max_length": 16}, "tokenizer": {"path": str(folder)}})
    corpus = open_labeled(config, folder / "run", TASKS["multiple_choice"].reader(config), log)
    return TASKS["multiple_choice"](config, corpus), corpus


def test_rows_of_a_batch(tmp_path: pathlib.Path) -> None:
    """A question of two choices next to one of three, and an empty row: [CLS] a [SEP] b c [SEP]; b and c are 6 and 7."""
    rows = [
        {"question": "a", "start": "b", "choices": ["c", "d"], "label": 1},
        {"question": "a", "start": "b", "choices": ["c", "d", "e f"], "label": 2},
    ]
    task, corpus = corpus_of(tmp_path, rows, pair_key="start")
    batch = task.examples(corpus.train, "train").batch(np.zeros(3, np.int64), np.array([0, 1, -1]), 8)
    assert batch["tokens_BL"].tolist() == [
        [[2, 5, 3, 6, 7, 3, 0, 0], [2, 5, 3, 6, 8, 3, 0, 0], [0] * 8],
        [[2, 5, 3, 6, 7, 3, 0, 0], [2, 5, 3, 6, 8, 3, 0, 0], [2, 5, 3, 6, 9, 10, 3, 0]],
        [[0] * 8] * 3,
    ]
    assert batch["types_BL"][0, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert batch["choices_BC"].tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert batch["labels_B"].tolist()[:2] == [1, 2] and batch["row_weights_B"].tolist() == [1, 1, 0]
    logits = np.log([[0.25, 0.75, 1e-38], [0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]).astype(np.float32)
    sums = task.objective.logit_sums(logits, batch)
    assert float(sums["choice_loss_nats"]) == pytest.approx(-np.log(0.75) - np.log(0.25))
    assert float(sums["accuracy"]) == 1


@pytest.mark.parametrize(("label", "number"), [(1, 1), ("1", 1), ("B", 1), ("c", 2), ("yes no", 0), ("2", 2)])
def test_forms_of_labels(label: Any, number: int, tmp_path: pathlib.Path) -> None:
    row = {"question": "a", "choices": ["yes no", "no", "e"], "label": label}
    _, corpus = corpus_of(tmp_path, [row])
    assert corpus.arrays["train"]["labels"].tolist() == [number] * 3


THREE = ["b", "c", "d"]
FILES = {  # answers of questions with the choices b, c, d: their numbers, and the message in the log
    "numbers from 0": ([0, 2, 1], [0, 2, 1], "numbers from 0"),
    "numbers from 1": ([1, 3, 2], [0, 2, 1], "numbers from 1"),
    "from 1, in any form": (["1", 3.0, " 2.0 "], [0, 2, 1], "numbers from 1"),
    "neither the first nor the last": ([1, 2, 1], [1, 2, 1], "numbers from 0 (numbers from 1 would fit too)"),
    "letters": (["A", "c", " B"], [0, 2, 1], "letters"),
    "texts that are letters": (["b", "d", "c"], [0, 2, 1], "texts of choices"),
    "letters that are texts": (["a", "c", "b"], [0, 2, 1], "letters"),
    "texts or letters": (["b", "c", "c"], [0, 1, 1], "texts of choices (letters would fit too)"),
}


@pytest.mark.parametrize("case", FILES)
def test_all_answers_of_a_file_are_read_the_same_way(case: str, tmp_path: pathlib.Path) -> None:
    """The letter b is the first choice's text and the second one's letter: all answers together decide which."""
    answers, numbers, said = FILES[case]
    rows, lines = [{"question": "a", "choices": THREE, "label": answer} for answer in answers], []
    _, corpus = corpus_of(tmp_path, rows, lines.append)
    assert corpus.arrays["train"]["labels"][::3].tolist() == numbers
    assert f"train: answers are read as {said}" in lines


def test_numbering_of_one_part_decides_that_of_another(tmp_path: pathlib.Path) -> None:
    """Training answers 1 to 3, held-out ones 1 and 2."""
    held = write(tmp_path / "b.jsonl", [{"question": "a", "choices": THREE, "label": label} for label in (1, 2)])
    rows = [{"question": "a", "choices": THREE, "label": label} for label in (1, 2, 3)]
    _, corpus = corpus_of(tmp_path, rows, validation=str(held))
    assert [corpus.arrays[part]["labels"][::3].tolist() for part in ("train", "validation")] == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize("answers", [[0, 3], ["A", 1], ["d", "A"], [0, "C"], ["1", "d"]])
def test_a_file_that_mixes_forms_is_refused(answers: list[Any], tmp_path: pathlib.Path) -> None:
    rows = [{"question": "a", "choices": THREE, "label": answer} for answer in answers]
    with pytest.raises(
        DataError,
        match=r"a.jsonl, line 2: .*but the answers before it, from .*a.jsonl, line 1 on, are .*must use one notation",
    ):
        corpus_of(tmp_path, rows)


def test_choices_in_separate_fields(tmp_path: pathlib.Path) -> None:
    _, corpus = corpus_of(tmp_path, [{"question": "a", "x": "b", "y": "c", "label": 0}], choices_key="x, y")
    assert corpus.train.document_tokens(1).tolist() == [2, 5, 3, 7, 3]


GOOD = {"question": "a", "choices": ["b", "c"], "label": 0}
WRONG = {
    "past the last": (
        {"label": 3},
        "field 'label' is 3, not one of 2 choices: a number from 0 to 1, or from 1, a letter from A to B",
    ),
    "two numbers past": ({"label": "٣"}, "field 'label' is '٣', not one of 2 choices"),
    "a letter that is two": ({"label": "ß"}, "field 'label' is 'ß', not one of 2 choices"),
    "blank": ({"label": " "}, "field 'label' is ' ', not one of 2 choices"),
    "no number": ({"label": float("nan")}, "field 'label' is nan, not one of 2 choices"),
    "true": ({"label": True}, "field 'label' is True, not one of 2 choices"),
    "a letter past": ({"label": "C"}, "field 'label' is 'C', not one of 2 choices"),
    "no label": ({"label": None}, "field 'label' is None, not one of 2 choices"),
    "negative": ({"label": -1}, "field 'label' is -1"),
    "one choice": ({"choices": ["b"]}, "field 'choices' is .*not a list of two texts or more"),
    "a text": ({"choices": "b"}, "field 'choices' is 'b', not a list"),
    "no question": ({"question": 1}, "field 'question' is 1, not a text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_records_that_cannot_be_used(case: str, tmp_path: pathlib.Path) -> None:
    change, message = WRONG[case]
    with pytest.raises(DataError, match=f"a.jsonl, line 2.*{message}"):
        corpus_of(tmp_path, [GOOD, GOOD | change])

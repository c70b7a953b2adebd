"""Instruction tuning: rows by hand, conversations, and a causal model that learns to answer."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.train_helpers import ROOT, call, summary
from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.records import Record

WORDS = "river stone bread water light night sheep field".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "user", "assistant", ":"]  # 5 to 15
A, B, C, D, USER, ASSISTANT, COLON, SEP = 5, 6, 7, 8, 13, 14, 15, 3


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_of(
    folder: pathlib.Path, rows: list[dict[str, Any]], template: str = "", **keys: Any
) -> tuple[Any, Any, list[str]]:
    """A task, its data and its log, with a tokenizer of one token a word."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True} | (
        {"chat_template": template} if template else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = str(write(folder / "a.jsonl", rows))
    config = resolve(
        {
            "task": {
                "name": "instruction",
                "text_key": "prompt",
                "label_key": "answer",
                "train": source,
                "validation": source,
            },
            "data": {"max_length": 8} | keys.get("data", {}),
            "objective": {"target_length": 3},
            "tokenizer": {"path": str(folder)},
            "train": {"batch_size": 4},
        }
    )
    log: list[str] = []
    corpus = open_labeled(config, folder / "run", TASKS["instruction"].reader(config), log.append)
    return TASKS["instruction"](config, corpus), corpus, log


def test_rows_as_computed_by_hand(tmp_path: pathlib.Path) -> None:
    """[SEP] prompt answer [SEP], of which all but the last token are read; only the answer and its end are learned."""
    rows = [{"prompt": "a b", "answer": "c d"}, {"prompt": "a a a", "answer": "b b b b b b"}]
    task, corpus, log = task_of(tmp_path, rows)
    batch = task.examples(corpus.train, "train").batch(np.zeros(3, np.int64), np.array([0, 1, -1]), (8, 5))
    assert batch["tokens_BL"].tolist() == [[SEP, A, B, C, D, 0, 0, 0], [SEP, A, A, A, B, B, B, B], [0] * 8]
    assert batch["targets_BL"].tolist() == [[A, B, C, D, SEP, 0, 0, 0], [A, A, A, B, B, B, B, B], [0] * 8]
    assert batch["weights_BL"].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1], [0] * 8]
    assert batch["segments_BL"].sum(1).tolist() == [5, 8, 0] and "prompt_tokens_BP" not in batch
    assert any("1 of them cut to data.max_length=8 tokens, 0 before any answer" in line for line in log)
    asked = task.examples(corpus.validation, "final")
    assert asked.width(np.array([0, 1])) == (8, 5)  # three more tokens are to be written
    batch = asked.batch(np.zeros(3, np.int64), np.array([1, 0, -1]), (8, 5))
    assert batch["prompt_tokens_BP"].tolist() == [[0, SEP, A, A, A], [0, 0, SEP, A, B], [0] * 5]
    assert batch["prompt_start_B"].tolist() == [1, 2, 4] and batch["record_B"].tolist() == [1, 0, 0]


def test_packed_rows_hold_whole_records_kept_separate(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d d"}]  # 3 and 4 tokens are read
    task, corpus, _ = task_of(tmp_path, rows, data={"packing": True})
    batch = task.examples(corpus.train, "train").shared(np.array([[1, 0]]))
    assert batch["segments_BL"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]
    assert batch["positions_BL"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch["weights_BL"].sum() == 2 + 3


TURNS = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
MESSAGES = {"messages": [{"role": role, "content": content} for role, content in TURNS]}
CHAT = "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}[SEP] {% endif %}{% endfor %}"


def learned(corpus: Any, task: Any) -> tuple[list[int], list[int]]:
    """Ids of the first record, and those of them that are learned."""
    rows = task.examples(corpus.train, "train")
    ids = corpus.train.document_tokens(0)
    return ids.tolist(), ids[rows.is_answer[: len(ids)]].tolist()


def test_every_answer_of_a_conversation_is_learned(tmp_path: pathlib.Path) -> None:
    """By the plain template, then by the tokenizer's own, which writes the end of an answer itself."""
    task, corpus, _ = task_of(tmp_path, [MESSAGES, MESSAGES])
    one = [USER, COLON, A, ASSISTANT, COLON, B, SEP, USER, COLON, C, ASSISTANT, COLON, D, SEP]
    assert learned(corpus, task) == (one, [B, SEP, D, SEP])
    assert task.files(None)["chat_template.jinja"].startswith(b"{% for message in messages")
    (tmp_path / "own").mkdir()
    task, corpus, _ = task_of(tmp_path / "own", [MESSAGES, MESSAGES], CHAT)
    assert learned(corpus, task) == ([A, B, SEP, C, D, SEP], [B, SEP, D, SEP])
    assert "chat_template.jinja" not in task.files(None)


def test_generation_blocks_mark_what_is_learned(tmp_path: pathlib.Path) -> None:
    """No end token is added then, and a tool call may replace a text; the template can use fields other than the text."""
    template = (
        "{% for m in messages %}{{ m.name }} {% if m.role == 'assistant' %}{% generation %}{{ m.content or m.tool_calls[0] }}\
{% endgeneration %}{% endif %} {% endfor %}{{ tools[0] }}"
    )
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a", "name": "b"},
                {"role": "assistant", "content": None, "tool_calls": ["c"]},
                {"role": "assistant", "content": "d d"},
            ],
            "tools": ["a"],
        }
    ] * 2
    task, corpus, _ = task_of(tmp_path, rows, template)
    assert learned(corpus, task) == ([B, C, D, D], [C, D, D])


def test_answers_with_nothing_between_them_are_learned_as_one(tmp_path: pathlib.Path) -> None:
    rows = [{"messages": [*MESSAGES["messages"][:2], MESSAGES["messages"][3]]}] * 2
    task, corpus, _ = task_of(tmp_path, rows, CHAT)
    assert learned(corpus, task) == ([A, B, SEP, D, SEP], [B, SEP, D, SEP])
    assert np.asarray(corpus.train.document_starts).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("parts", "ids", "cuts"),
    [
        ([[], [5]], [3, 5], (1,)),  # what precedes the first answer is at least the end token
        ([[1], [2], [], [3], [], [4]], [1, 2, 3, 4], (1,)),
        ([[1], [2], [5], [3], [], [4]], [1, 2, 5, 3, 4], (1, 2, 3)),
        ([[1], [2], [], [3], [6], [4]], [1, 2, 3, 6, 4], (1, 3, 4)),
        ([[1], [], [5], [], [6], [4]], [1, 5, 6, 4], (1, 1, 2, 2, 3)),  # an answer without tokens joins no prompts
        ([[1], [], [], [4]], [1, 4], (1,)),
    ],
)
def test_parts_of_a_row(
    parts: list[list[int]], ids: list[int], cuts: tuple[int, ...], tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    """Cuts are the sums of the lengths of prompts and answers in turn."""
    task, _, _ = task_of(tmp_path, [GOOD, GOOD])
    reader = TASKS["instruction"].reader(task.config)
    monkeypatch.setattr(reader, "parts", lambda record, tokenizer: [list(part) for part in parts])
    (row,) = reader.encode([Record("a", {})], (), task.tokenizer)
    assert (row.ids.tolist(), row.cuts, row.ids.dtype) == (ids, cuts, np.int32)


def test_alpaca_columns_become_a_conversation(tmp_path: pathlib.Path) -> None:
    rows = [{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "a", "input": "", "output": "c"}]
    task, corpus, _ = task_of(tmp_path, rows)
    assert corpus.metadata["validation"][0]["messages"][0]["content"] == "a\n\nb"
    assert learned(corpus, task) == ([USER, COLON, A, B, ASSISTANT, COLON, C, SEP], [C, SEP])


GOOD = {"prompt": "a", "answer": "b"}
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "none of the three": ({"question": "a"}, "", "line 2 has neither a prompt .*'prompt'.* but 'question'"),
    "a missing answer": ({"prompt": "a"}, "", "line 2 has no field 'answer'"),
    "an empty answer": ({"prompt": "a", "answer": " "}, "", "line 2 has an empty answer"),
    "no list": ({"messages": "a"}, "", "line 2: 'messages' is 'a', not a list of objects with role and content"),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "", "line 2: 'messages' has no answer"),
    "a template that refuses": (
        MESSAGES,
        "{{ raise_exception('never') }}",
        "line 2: .*does not take these messages: never",
    ),
    "a template that marks nothing": (
        MESSAGES,
        "{{ messages[0].content }}{% generation %}{% endgeneration %}",
        "line 2: .*renders none of the answers",
    ),
    "a message without a text": (
        {"messages": [{"role": "user", "content": None}]},
        "",
        "line 2: 'messages' is .*not a list of objects",
    ),
    "a template that forgets": (MESSAGES, "{{ messages[-1].content }}", "line 2: .*changes the text before an answer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_records_that_cannot_be_used(case: str, tmp_path: pathlib.Path) -> None:
    row, template, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        task_of(tmp_path, [GOOD, row], template)


def test_a_causal_model_learns_to_answer(tmp_path: pathlib.Path, capsys: Any) -> None:
    """The answer is the first word of the last message; half of the conversations have two turns."""
    draw = random.Random(0)
    for name, count in (("train", 800), ("dev", 24)):
        rows = []
        for _ in range(count):
            messages = []
            for _ in range(draw.randint(1, 2)):
                words = [draw.choice(WORDS) for _ in range(draw.randint(1, 3))]
                messages += [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": words[0]}]
            rows.append({"messages": messages})
        write(tmp_path / f"{name}.jsonl", rows)
    keys = {
        "task.train": tmp_path / "train.jsonl",
        "task.validation": tmp_path / "dev.jsonl",
        "task.predict_with_generate": "each",
        "model.num_layers": 1,
        "model.hidden_size": 64,
        "model.num_heads": 4,
        "model.intermediate_size": 128,
        "model.max_length": 64,
        "data.max_length": 64,
        "objective.target_length": 8,
        "tokenizer.type": "wordpiece",
        "tokenizer.vocab_size": 64,
        "optimizer.learning_rate": 5e-3,
        "model.init_std": 0.1,
        "train.num_epochs": 0,
        "train.num_steps": 100,
        "train.batch_size": 32,
        "logging.trackers": "none",
        "eval.every_steps": 0,
        "data.packing": "True",
    }
    flags = [
        f"--config={ROOT}/configs/finetune/instruction.py",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]
    assert call([*flags, f"--workdir={tmp_path}/encoder", "--config.model.family=bert"]) == 2
    assert "fine-tunes a model of kind decoder" in capsys.readouterr().err
    assert call([*flags, f"--workdir={tmp_path}/run"]) == 0
    found = summary(tmp_path / "run")["validation"]
    assert found["eval_exact_match"] > 0.6  # guessing: an eighth
    assert found["eval_perplexity"] == pytest.approx(np.exp(found["eval_lm_loss_nats"]))
    rows = [json.loads(line) for line in (tmp_path / "run/predictions_validation.jsonl").read_text().splitlines()]
    assert found["eval_exact_match"] == pytest.approx(np.mean([row["answer"] == row["prediction"] for row in rows]))
    answer = lm_research.pipeline("conversational", model=tmp_path / "run" / "model")
    said = [one[-1]["content"].strip() for one in answer([row["messages"] for row in rows])]
    assert said == [row["prediction"] for row in rows]

"""Fine-tuning through the real command: what is learned, what is written, and that it resumes and stops as configured."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any
from unittest import mock

import numpy as np
import pytest

import lm_research
from helpers.train_helpers import ROOT, call, checkpoints, metrics, same, summary, without_training_of_tokenizers
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.errors import PretrainedError
from lm_research.run import evaluator
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled
from lm_research.trees import flatten

WORDS = "river stone bread water light night sheep field".split()
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.max_length": 64,
    "model.dropout_rate": 0.0,
    "model.attention_dropout_rate": 0.0,
    "data.max_length": 64,
    "tokenizer.type": "wordpiece",
    "tokenizer.vocab_size": 64,
    "optimizer.learning_rate": 1e-2,
    "train.num_epochs": 6,
    "train.batch_size": 16,
    "logging.trackers": "none",
    "logging.every_steps": 10,
    "schedule.warmup_ratio": 0.05,
}


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of 3 to 40 words; the label is whether one of them is "gold"."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(3, 40))]
        if number % 2:
            words[draw.randrange(len(words))] = "gold"
        rows.append({"text": " ".join(words), "label": "rich" if number % 2 else "poor"})
    return rows


def train(workdir: pathlib.Path, config: str = "classification", **keys: Any) -> int:
    flags = [f"--config.{key}={value}" for key, value in (TINY | keys).items()]
    flags = without_training_of_tokenizers(flags)
    return call([f"--config={ROOT}/configs/finetune/{config}.py", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("labeled")
    keys = {"task.train": write(folder / "train.jsonl", texts(320, 0)), "data.cache_dir": folder / "cache"}
    return keys | {
        "task.validation": write(folder / "dev.jsonl", texts(75, 1)),
        # Written as no tokenizer gives it back:
        "task.test": write(folder / "t.jsonl", [row | {"text": f"Ça\u3000 {row['text']}\n"} for row in texts(30, 2)]),
    }


@pytest.fixture(scope="module")
def run(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An uninterrupted run; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "texts"
    assert train(workdir, **files, **{"eval.every_steps": 40, "checkpoint.every_steps": 40}) == 0
    return workdir


def test_it_learns_labels_that_guessing_gets_half_right(run: pathlib.Path) -> None:
    found = summary(run)
    assert found["validation"]["eval_accuracy"] > 0.95 and found["test"]["eval_accuracy"] > 0.9  # guessing: 0.5
    assert found["best_step"] in checkpoints(run)
    assert found["validation"]["eval_accuracy"] == max(line.get("eval_accuracy", 0) for line in metrics(run))


def test_predictions_are_those_of_the_exported_model(run: pathlib.Path, files: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (run / "predictions_test.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in files["task.test"].read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["label"] for row in given]
    assert [row["text"] for row in rows] == [row["text"] for row in given]
    lm = lm_research.from_pretrained(run / "model")
    logits = np.asarray(lm(**lm.tokenizer([row["text"] for row in given], padding=True))["logits"])
    names = lm.config.to_dict()["id2label"]
    assert names == {"0": "poor", "1": "rich"}
    assert [names[str(best)] for best in logits.argmax(1)] == [row["prediction"] for row in rows]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares.max(1), [row["probability"] for row in rows], atol=2e-6)
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert summary(run)["test"]["eval_accuracy"] == pytest.approx(right)


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    keys = files | {"eval.every_steps": 40, "checkpoint.every_steps": 40}
    assert train(tmp_path / "a", **keys, **{"train.num_epochs": 0, "train.num_steps": 120}) == 0
    for step in checkpoints(tmp_path / "a"):
        if step > 80:
            shutil.rmtree(tmp_path / "a" / "checkpoints" / str(step))
    assert 80 in checkpoints(tmp_path / "a")
    (tmp_path / "a" / "predictions_test.jsonl").unlink()
    assert train(tmp_path / "a", **keys, **{"train.num_epochs": 0, "train.num_steps": 120}) == 0
    assert same(run, tmp_path / "a")
    assert (tmp_path / "a" / "predictions_test.jsonl").read_text() == (run / "predictions_test.jsonl").read_text()


def test_scores_do_not_depend_on_the_batch_size(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """75 records in batches of 16 and of 7: none is dropped or counted twice."""
    start = {
        "train.init_from": run / "model",
        "optimizer.learning_rate": 0.0,
        "train.num_epochs": 0,
        "train.num_steps": 1,
    }
    found = []
    for size in (16, 7):
        workdir = tmp_path / str(size)
        assert train(workdir, **files, **start, **{"train.batch_size": size, "optimizer.weight_decay": 0.0}) == 0
        found.append(summary(workdir)["validation"])
    best = summary(run)["validation"]
    for name, value in best.items():
        assert found[0][name] == pytest.approx(value, abs=1e-6), name
        assert found[1][name] == pytest.approx(value, abs=1e-6), name


def test_evaluate_reproduces_the_runs_own_scores(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    task = {"name": "rich", "task": "classification", "data": str(files["task.test"])}
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={run}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main([*given, "--batch_size=8"]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["rich"]["scores"]
    for name, found in scores.items():
        assert found["mean"] == pytest.approx(summary(run)["test"][f"eval_{name}"], abs=1e-6), name
    written, theirs = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run / "predictions_test.jsonl", tmp_path / "out/rich/predictions.jsonl")
    )
    for number, (one, other) in enumerate(zip(written, theirs, strict=True), 1):
        assert one["where"] == f"{files['task.test']}, line {number}"
        assert one.pop("logits") == pytest.approx(other.pop("logits"), abs=1e-5)
        assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-5)
        assert one == other


@pytest.mark.slow
def test_patience_ends_a_run_that_no_longer_improves(files: dict[str, Any], tmp_path: pathlib.Path) -> None:
    keys = {"eval.every_steps": 5, "optimizer.learning_rate": 0.0, "task.patience": 2}
    assert train(tmp_path / "run", **files, **keys) == 0
    assert summary(tmp_path / "run")["status"] == "finished" and summary(tmp_path / "run")["step"] == 15
    assert train(tmp_path / "run", **files, **keys) == 0  # reports it again, and trains no further
    assert summary(tmp_path / "run")["step"] == 15


@pytest.mark.slow
def test_pairs_values_and_several_labels(tmp_path: pathlib.Path) -> None:
    """Whether two words are equal; how many of eight words are "gold"; which of two words occur."""
    draw = random.Random(0)
    pairs, values, several = [], [], []
    for number in range(300):
        a, b = draw.choice(WORDS), draw.choice(WORDS)
        pairs.append({"a": a, "b": a if number % 2 else b, "same": int(number % 2 or a == b)})
        count = draw.randint(0, 8)
        words = ["gold"] * count + [draw.choice(WORDS) for _ in range(8 - count)]
        draw.shuffle(words)
        values.append({"text": " ".join(words), "label": count / 4})
        several.append({"text": " ".join(words), "label": [word for word in ("river", "stone") if word in words]})
    keys = {"data.validation_fraction": 0.2, "train.num_epochs": 20, "optimizer.learning_rate": 3e-3}
    task = {"task.text_key": "a", "task.pair_key": "b", "task.label_key": "same"}
    assert train(tmp_path / "p", **keys, **task, **{"task.train": write(tmp_path / "p.jsonl", pairs)}) == 0
    assert summary(tmp_path / "p")["validation"]["eval_accuracy"] > 0.8
    task = {"task.problem_type": "regression", "task.train": write(tmp_path / "v.jsonl", values)}
    assert train(tmp_path / "v", **keys, **task) == 0
    assert summary(tmp_path / "v")["validation"]["eval_pearson"] > 0.9
    task = {"task.problem_type": "multi_label", "task.train": write(tmp_path / "s.jsonl", several)}
    assert train(tmp_path / "s", **keys, **task) == 0
    assert summary(tmp_path / "s")["validation"]["eval_f1_micro"] > 0.9
    assert json.loads((tmp_path / "s/model/config.json").read_text())["problem_type"] == "multi_label_classification"


@pytest.mark.slow
def test_tags(tmp_path: pathlib.Path) -> None:
    """Names of one and two words, which an encoder and a causal model can learn."""
    draw = random.Random(0)
    lines = []
    for _ in range(200):
        for _ in range(draw.randint(2, 6)):
            lines.append(f"{draw.choice(WORDS)} O")
            if draw.random() < 0.4:
                lines += ["gold B-PER"] + ["ring I-PER"] * draw.randint(0, 1)
        lines.append("")
    (tmp_path / "a.conll").write_text("\n".join(lines))
    for family in ("bert", "gpt2"):
        keys = {"task.train": tmp_path / "a.conll", "model.family": family, "train.num_epochs": 8}
        keys |= {"data.validation_fraction": 0.2}
        assert train(tmp_path / family, "tagging", **keys) == 0
        assert summary(tmp_path / family)["validation"]["eval_f1"] > 0.95
    lm = lm_research.from_pretrained(tmp_path / "bert" / "model")
    assert (
        set(lm.config.to_dict()["id2label"].values()) == {"O", "B-PER", "I-PER"} and lm.head == "token_classification"
    )


def test_adapters_and_a_new_classifier(run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """From the body of a run whose head had other classes. The run's directory and its model give the same predictions.

    Each held-out part is computed once: the evaluation after the last step is also that of the exported model.
    """
    lm = lm_research.from_pretrained(run / "model", head="none")
    lm.save_pretrained(tmp_path / "body")
    keys = {"train.init_from": tmp_path / "body", "lora.rank": 4, "train.num_epochs": 1, "task.patience": 0}
    with mock.patch.object(evaluator, "evaluate", wraps=evaluator.evaluate) as calls:
        assert train(tmp_path / "run", **files, **keys) == 0
    assert calls.call_count == 2  # the validation and the test part
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions_test.jsonl").read_text().splitlines()]
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        tuned = lm_research.from_pretrained(path)
        tokens = lm_research.from_pretrained(run / "model").tokenizer([row["text"] for row in rows], padding=True)
        logits = np.asarray(tuned(**tokens)["logits"])
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(shares.max(1), [row["probability"] for row in rows], atol=2e-6)
    before, after = (flatten(model.params) for model in (lm, tuned))
    changed = {path for path in before if (np.asarray(before[path]) != np.asarray(after[path])).any()}
    assert changed == {f"encoder/layers/attention/{name}/kernel" for name in ("query", "value")}
    assert json.loads((tmp_path / "run/config.json").read_text())["lora"]["modules_to_save"] == ["^classifier/"]
    assert summary(tmp_path / "run")["validation"]["eval_accuracy"] > 0.9


@pytest.mark.slow
def test_frozen_parameters_equal_those_of_the_base(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    keys = {"train.init_from": run / "model", "train.freeze": "encoder/embeddings", "optimizer.layer_decay": 0.5}
    assert train(tmp_path / "run", **files, **keys, **{"train.num_epochs": 1}) == 0
    before, after = (
        flatten(lm_research.from_pretrained(path).params) for path in (run / "model", tmp_path / "run/model")
    )
    assert {path for path in before if (np.asarray(before[path]) != np.asarray(after[path])).any()} == {
        path for path in before if "embeddings" not in path
    }


def test_words_of_several_pieces_carry_their_tag_once(tmp_path: pathlib.Path) -> None:
    two = [{"tokens": [f"{a}{b}", a], "tags": ["B-A", "O"]} for a in WORDS for b in WORDS]
    write(tmp_path / "a.jsonl", two + [{"tokens": [a], "tags": ["O"]} for a in WORDS])
    config = resolve(
        {
            "task": {"name": "tagging", "train": str(tmp_path / "a.jsonl"), "text_key": "tokens", "label_key": "tags"},
            "tokenizer": {"type": "wordpiece", "vocab_size": 64},
            "data": {"max_length": 16, "validation_fraction": 0.2},
        }
    )
    corpus = open_labeled(config, tmp_path / "run", TASKS["tagging"].reader(config), lambda line: None)
    starts = np.asarray(corpus.train.sentence_starts)
    for first, end in zip(starts, starts[1:], strict=False):
        labels = corpus.arrays["train"]["labels"][first:end]
        words = corpus.tokenizer.decode(corpus.train.tokens[first:end].tolist()).split()
        assert [corpus.labels[label] for label in labels if label != -100] == (
            ["B-A", "O"] if len(words) == 2 else ["O"]
        )


def test_a_model_unsuited_to_the_task_is_refused(files: dict[str, Any], tmp_path: pathlib.Path, capsys: Any) -> None:
    assert train(tmp_path / "run", **files, **{"model.family": "t5"}) == 2
    assert "task.name=classification fine-tunes a model of kind encoder or decoder" in capsys.readouterr().err
    assert train(tmp_path / "run", **files, **{"task.metric": "f2"}) == 2
    assert "task.metric is 'f2'. Valid: accuracy, " in capsys.readouterr().err
    assert train(tmp_path / "run", **files, **{"task.metric": "f1+class_loss_nats"}) == 2
    assert "averages a metric where higher is better with one where lower is better" in capsys.readouterr().err
    assert train(tmp_path / "run", **files, **{"task.metric": "pearson"}) == 2  # a metric of values
    assert "task.metric is 'pearson'. Did you mean 'precision'?" in capsys.readouterr().err
    assert train(tmp_path / "run") == 2
    assert "needs labeled records" in capsys.readouterr().err
    with pytest.raises(PretrainedError):
        lm_research.from_pretrained(tmp_path / "run" / "model")

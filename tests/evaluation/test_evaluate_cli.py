"""The command: predictions equal to the pipeline's, results unaffected by a kill, and a comparison of two evaluations."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from helpers.golden_pipelines import CONTENT, write_model
from lm_research import evaluate, pipeline
from lm_research.evaluation import runner
from lm_research.evaluation.task_predictor import TaskPredictor

WORDS = CONTENT["vocab"][5:12] + CONTENT["vocab"][14:37]
TEXTS = [" ".join(WORDS[(3 * n + k) % len(WORDS)] for k in range(2 + n % 5)) for n in range(11)]
CLASSES, TAGS = ("bad", "so-so", "good"), ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Models and a suite with a task for each."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("classes", "several", "value", "tags"):
        write_model(name, folder / name)
    write(folder / "classes.jsonl", [{"text": text, "label": CLASSES[n % 3]} for n, text in enumerate(TEXTS)])
    write(folder / "several.jsonl", [{"text": text, "label": ["0"] if n % 2 else []} for n, text in enumerate(TEXTS)])
    write(folder / "value.jsonl", [{"text": text, "label": n / 4} for n, text in enumerate(TEXTS)])
    lines = [f"{word} {TAGS[k % 2]}" if word else "" for text in TEXTS for k, word in enumerate([*text.split(), ""])]
    (folder / "tags.conll").write_text("\n".join(lines))
    tasks = [
        {"name": "classes", "task": "classification", "data": "classes.jsonl", "metric": "f1_macro"},
        {"name": "several", "task": "classification", "data": "several.jsonl", "problem_type": "multi_label"},
        {"name": "value", "task": "classification", "data": "value.jsonl", "problem_type": "regression"},
        {"name": "tags", "task": "tagging", "data": "tags.conll"},
    ]
    for task in tasks:
        (folder / f"{task['name']}.json").write_text(json.dumps({"tasks": [task]}))
    (folder / "all.py").write_text(f'"""All of them."""\n\nTASKS = {tasks!r}\n')
    return folder


def run(
    folder: pathlib.Path, output: pathlib.Path, suite: str = "classes.json", *flags: str, model: str = "classes"
) -> int:
    given = [f"--model={folder}/{model}", f"--suite={folder}/{suite}", f"--output={output}"]
    return evaluate.main([*given, "--batch_size=4", "--resamples=20", *flags])


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def output(folder: pathlib.Path) -> pathlib.Path:
    """An uninterrupted evaluation of one model; read-only."""
    assert run(folder, folder / "out") == 0
    return folder / "out"


def test_predictions_are_the_pipelines_and_scores_follow_from_them(folder: pathlib.Path, output: pathlib.Path) -> None:
    answers = pipeline("text-classification", folder / "classes")(TEXTS)
    found = rows(output / "classes" / "predictions.jsonl")
    assert [row["prediction"] for row in found] == [answer["label"] for answer in answers]
    assert [row["label"] for row in found] == [CLASSES[n % 3] for n in range(11)]
    assert [row["text"] for row in found] == TEXTS and found[3]["where"].endswith("classes.jsonl, line 4")
    np.testing.assert_allclose(
        [row["probability"] for row in found], [answer["score"] for answer in answers], atol=2e-6
    )
    task = json.loads((output / "results.json").read_text())["tasks"]["classes"]
    right = np.mean([row["prediction"] == row["label"] for row in found])
    assert task["records"] == 11 and task["metric"] == "f1_macro"
    assert task["scores"]["accuracy"]["by_model"] == [pytest.approx(right)]
    assert task["scores"]["accuracy"]["low"] <= right <= task["scores"]["accuracy"]["high"]
    assert "| classes | 11" in (output / "results.md").read_text()


def test_records_of_a_group_are_scored_together(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Groups of three records and one of two; the choice of each follows from the predictions' own logits."""
    together = [
        {"text": f"{text}\u2028", "label": CLASSES[n % 3], "question": n // 3, "worth": (n % 4) / 4}
        for n, text in enumerate(TEXTS)
    ]
    write(folder / "together.jsonl", together)
    task = {"name": "together", "task": "classification", "data": "together.jsonl", "metric": "choice_credit"}
    (folder / "together.json").write_text(
        json.dumps({"tasks": [task | {"group_key": "question", "relevance_key": "worth"}]})
    )
    assert run(folder, tmp_path / "out", "together.json") == 0
    found = rows(tmp_path / "out" / "together" / "predictions.jsonl")
    logits = np.array([row["logits"] for row in found], np.float64)
    last = np.exp(logits[:, -1]) / np.exp(logits).sum(1)
    best = [max(range(first, min(first + 3, 11)), key=lambda n: last[n]) for first in range(0, 11, 3)]
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["together"]["scores"]
    assert scores["choice_credit"]["mean"] == pytest.approx(np.mean([(n % 4) / 4 for n in best]))
    assert scores["choice_accuracy"]["mean"] == pytest.approx(np.mean([n % 3 == 2 for n in best]))
    right = [row["prediction"] == row["label"] for row in found]
    assert scores["group_accuracy"]["mean"] == np.mean([all(right[first : first + 3]) for first in range(0, 11, 3)])


def test_the_page_needs_no_network_and_counts_each_record_once(output: pathlib.Path) -> None:
    page = (output / "index.html").read_text()
    assert not re.search(r"<script|<link|src=|@import|url\(", page)
    assert re.findall(r'"(https?:[^"]+)"', page) == ["http://www.w3.org/2000/svg"] * page.count("<svg")
    matrix = page[page.index("<title>Confusion matrix") : page.index("<h3>Calibration")]
    assert sum(int(number) for number in re.findall(r">(\d+)</text>", matrix)) == 11
    assert page.count('class="record"') == 11 and "prefers-color-scheme:dark" in page


def test_a_killed_evaluation_resumes(
    folder: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches; killed before the third; the first two are not run again, and the results are the same."""
    real, run_batches = TaskPredictor.batch, []

    def batch(self: TaskPredictor, number: int) -> Any:
        if number == 2 and 2 not in run_batches:
            run_batches.append(2)
            raise KeyboardInterrupt
        run_batches.append(number)
        return real(self, number)

    monkeypatch.setattr(TaskPredictor, "batch", batch)
    monkeypatch.setattr(runner, "_SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "classes" / "predictions.jsonl").exists()
    kept = sorted(path.name for path in (tmp_path / "out" / "classes" / "partial").iterdir())
    assert len(kept) == 2
    (tmp_path / "out" / "classes" / "partial" / f"{kept[1]}.tmp").write_bytes(b"PK")  # killed while it was written
    assert run(folder, tmp_path / "out") == 0 and run_batches == [0, 1, 2, 2]
    files = ("results.json", "results.md", "index.html", "classes/predictions.jsonl", "classes/task.json")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (output / name).read_bytes(), name
    assert run(folder, tmp_path / "out") == 0 and run_batches == [0, 1, 2, 2]  # once more runs nothing
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert left == {*files, "made_from.json", ".lock"}


def test_a_suite_of_all_kinds_with_a_model_for_each(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run(folder, tmp_path / "out", "all.py", model="{task}") == 0
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert {name: task["metric"] for name, task in tasks.items()} == {
        "classes": "f1_macro",
        "several": "f1_micro",
        "value": "spearman",
        "tags": "f1",
    }
    several = pipeline("text-classification", folder / "several")(TEXTS, top_k=None)
    for row, answer in zip(rows(tmp_path / "out/several/predictions.jsonl"), several, strict=True):
        assert set(row["prediction"]) == {one["label"].removeprefix("LABEL_") for one in answer if one["score"] > 0.5}
    value = pipeline("text-classification", folder / "value")(TEXTS)
    found = [row["prediction"] for row in rows(tmp_path / "out/value/predictions.jsonl")]
    np.testing.assert_allclose(found, [one["score"] for one in value], atol=1e-5)
    squared = np.mean([(own - n / 4) ** 2 for n, own in enumerate(found)])
    assert tasks["value"]["scores"]["squared_error"]["mean"] == pytest.approx(squared)
    tags = rows(tmp_path / "out/tags/predictions.jsonl")
    right = [own == true for row in tags for own, true in zip(row["prediction"], row["label"], strict=True)]
    assert len(right) == sum(len(text.split()) for text in TEXTS)
    assert tasks["tags"]["scores"]["accuracy"]["mean"] == pytest.approx(np.mean(right))


def test_seeds_and_comparison(folder: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    """Another model of the same classes: as a second seed, and against the first."""
    from safetensors import numpy as safetensors

    other = folder / "classes_2"
    write_model("classes", other)
    weights = safetensors.load_file(other / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"][::-1].copy()
    safetensors.save_file(weights, other / "model.safetensors")
    assert run(folder, tmp_path / "both", "classes.json", f"--model={other}") == 0
    found = json.loads((tmp_path / "both" / "results.json").read_text())["tasks"]["classes"]["scores"]["accuracy"]
    a, b = found["by_model"]
    assert found["mean"] == pytest.approx((a + b) / 2) and found["std"] == pytest.approx(abs(a - b) / 2**0.5)
    assert run(folder, tmp_path / "b", model="classes_2") == 0
    capsys.readouterr()
    given = ["--compare", str(output), str(tmp_path / "b"), "--resamples=50"]
    assert evaluate.main([*given, f"--output={tmp_path / 'c'}"]) == 0
    assert "paired permutation" in capsys.readouterr().out
    task = json.loads((tmp_path / "c" / "comparison.json").read_text())["tasks"]["classes"]
    assert task["metric"] == "f1_macro" and task["difference"] == pytest.approx(task["b"] - task["a"])
    assert 0 < task["p"] <= task["p_holm"] <= 1
    assert evaluate.main(["--compare", str(output), str(output)]) == 0
    assert "| 1 " in capsys.readouterr().out  # a model is not better than itself


def test_wrong_suites(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    def said(*flags: str, suite: str = "classes.json", model: str = "classes") -> str:
        assert run(folder, tmp_path / "out", suite, *flags, model=model) == 2
        return capsys.readouterr().err

    def suite(**changes: Any) -> str:
        task = {"name": "a", "task": "classification", "data": str(folder / "classes.jsonl")} | changes
        (folder / "wrong.json").write_text(json.dumps({"tasks": [task]}))
        return "wrong.json"

    assert "neither a file nor a suite that is included in the library. Valid: glue" in said(suite="no.yaml")
    assert "task a: there is no key 'txt_key'. Did you mean 'text_key'?" in said(suite=suite(txt_key="x"))
    assert "there is no task 'clasification'. Did you mean 'classification'?" in said(suite=suite(task="clasification"))
    assert "task a has no 'data'" in said(suite=suite(data=""))
    assert "no.jsonl" in said(suite=suite(data="no.jsonl"))
    assert "is not a directory" in said(model="nothing")


def test_models_and_records_that_do_not_fit(
    folder: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    def said(number: int, model: str = "classes", **changes: Any) -> str:
        task = {"name": "a", "task": "classification", "data": str(folder / "classes.jsonl")} | changes
        (folder / "wrong.json").write_text(json.dumps({"tasks": [task]}))
        assert run(folder, tmp_path / f"out_{number}", "wrong.json", model=model) == 2
        return capsys.readouterr().err

    assert "names 2 labels, but" in said(0, labels="a,b")
    assert "metric is 'f2'. Valid: accuracy, " in said(1, metric="f2")
    assert "with head 'token_classification', but" in said(2, task="tagging")
    bare = write_model("classes", folder / "bare")
    (bare / "vocab.txt").unlink()
    (bare / "tokenizer_config.json").unlink()
    assert "has no tokenizer, so it cannot read texts" in said(4, model="bare")
    unknown = said(3, labels=["bad", "fair", "good"])
    assert "classes.jsonl, line 2 has the label 'so-so', which" in unknown and "does not have" in unknown
    assert run(folder, output, "classes.json", "--dtype=bfloat16") == 2
    assert "made with other dtype" in capsys.readouterr().err


def test_after_a_file_is_corrected_the_same_command_resumes(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    """A wrong label stops the second task; the first one's results are kept, and not computed again."""
    good = (folder / "classes.jsonl").read_text()
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(good)
    tasks = [
        {"name": name, "task": "classification", "data": str(tmp_path / f"{name}.jsonl")}
        for name in ("first", "second")
    ]
    (folder / "two.json").write_text(json.dumps({"tasks": tasks}))
    (tmp_path / "second.jsonl").write_text(good.replace('"good"', '"goood"'))
    assert run(folder, tmp_path / "out", "two.json") == 2
    assert "goood" in capsys.readouterr().err
    made = (tmp_path / "out" / "first" / "predictions.jsonl").stat().st_mtime_ns
    (tmp_path / "second.jsonl").write_text(good)
    assert run(folder, tmp_path / "out", "two.json") == 0
    assert (tmp_path / "out" / "first" / "predictions.jsonl").stat().st_mtime_ns == made
    rows = [(tmp_path / "out" / name / "predictions.jsonl").read_text().count("\n") for name in ("first", "second")]
    assert rows == [good.count("\n")] * 2
    (tmp_path / "first.jsonl").write_text(good.replace('"good"', '"bad"'))
    assert run(folder, tmp_path / "out", "two.json") == 2  # the finished results were made from another file
    assert "predictions of task first, made with other data" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert run(folder, tmp_path / "mine") == 2 and "files that are not part of an evaluation" in capsys.readouterr().err
    assert evaluate.main(["--compare", str(output), str(tmp_path / "mine")]) == 2
    assert "contains no finished evaluation" in capsys.readouterr().err

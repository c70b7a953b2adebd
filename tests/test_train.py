"""The train command end to end: what a run writes, and that only its config and its text decide the result."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil

import numpy as np
import pytest

from helpers import tiny
from helpers.train_helpers import EVALUATE, LOG, ROOT, STEPS, Lab, call, checkpoints, metrics, same, summary
from lm_research.config import loading, replace, resolve
from lm_research.data.corpus import open_corpus
from lm_research.data.sampler import BatchBuilder
from lm_research.objectives.causal_lm import CausalLanguageModel
from lm_research.pretrained import from_pretrained
from lm_research.run import fit, run_directory


def names(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in workdir.iterdir()}


def copied(run: pathlib.Path, folder: pathlib.Path, upto: int | None = None) -> pathlib.Path:
    """A copy of a finished run; with `upto`, as if it had been killed right after that checkpoint."""
    workdir = folder / "copy"
    shutil.copytree(run, workdir)
    if upto is not None:
        (workdir / "summary.json").unlink()
        for step in checkpoints(workdir):
            if step > upto:
                shutil.rmtree(workdir / "checkpoints" / str(step))
        assert checkpoints(workdir)[-1] == upto
    return workdir


def test_run_directory(bert_run: pathlib.Path) -> None:
    files = {"config.json", "environment.json", "metrics.jsonl", "log.txt", "summary.json", "time.json", ".lock"}
    assert names(bert_run) == files | {"checkpoints", "tensorboard", "profile"}
    assert not [path for path in bert_run.rglob("*") if "tmp" in path.relative_to(bert_run).name]
    assert checkpoints(bert_run) == [6, 12, 18, 20]
    assert list((bert_run / "tensorboard").iterdir()) and list((bert_run / "profile").rglob("*.xplane.pb"))
    (start,) = json.loads((bert_run / "environment.json").read_text())
    assert start["versions"]["jax"] and start["devices"]["platform"] == "cpu"


def test_metrics(bert_run: pathlib.Path) -> None:
    """Training lines every 7 steps, evaluations every 10 and at the end; rates and epochs by arithmetic."""
    lines = metrics(bert_run)
    assert [line["step"] for line in lines] == [7, 10, 14, 20]
    trained = [line for line in lines if "loss_nats" in line]
    assert [line["step"] for line in trained] == [LOG, 2 * LOG]
    for line in trained:
        assert line["loss_nats"] == pytest.approx(line["mlm_loss_nats"] + line["nsp_loss_nats"])
        # warm-up of 0.1 x 20 = 2 steps to 2e-3, then down to 0 at step 20; the step's number is counted from 0
        assert line["learning_rate"] == pytest.approx(2e-3 * (1 - (line["step"] - 1 - 2) / 18))
        assert line["tokens_per_second"] > 0 and line["step_seconds"] > 0 and line["grad_norm"] > 0
    assert trained[1]["epoch"] == pytest.approx(2 * trained[0]["epoch"]) and trained[1]["epoch"] < 1
    assert trained[1]["mlm_loss_nats"] < trained[0]["mlm_loss_nats"]
    for line in (line for line in lines if line["step"] % EVALUATE == 0):
        assert line["eval_perplexity"] == pytest.approx(math.exp(line["eval_mlm_loss_nats"]))
        assert 0 < line["eval_bits_per_byte"] < 20 and line["eval_tokens"] > 0


def test_evaluations_use_the_average_of_the_parameters(gpt_run: pathlib.Path) -> None:
    """The held-out loss of the last step against that of its three batches of 8 rows under the averaged parameters."""
    config, lm = resolve(json.loads((gpt_run / "config.json").read_text())), from_pretrained(gpt_run)
    corpus = CausalLanguageModel.open_corpus(config, gpt_run, lambda line: None)
    objective = CausalLanguageModel(config, corpus.tokenizer)
    batch = objective.examples(corpus.validation, "validation").batch(np.zeros(24, int), np.arange(24))
    sums = tiny.jit(lambda params: objective.metric_sums(lm.definition.bind(params), batch, None))(lm.params)
    expected = float(objective.loss(sums, objective.normalizers(batch)))
    assert metrics(gpt_run)[-1]["eval_loss_nats"] == pytest.approx(expected, rel=1e-5)


def test_a_run_in_parts_equals_the_whole_run(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paused after step 5, twice, with the schedule of the whole run: the same parameters and the same losses."""
    for part in (5, 5):
        assert lab.train(tmp_path, f"--config.train.stop_after={part}") == 0
        paused = json.loads((tmp_path / "summary.json").read_text())
        assert (paused["status"], paused["step"], paused["eval"]["step"]) == ("paused", part, part)
        assert f"paused after step {part}" in capsys.readouterr().out
    assert lab.train(tmp_path) == 0
    ours, whole = (json.loads((path / "summary.json").read_text()) for path in (tmp_path, bert_run))
    assert ours["digests"] == whole["digests"] and ours["status"] == "finished"
    assert ours["train"]["loss_nats"] == whole["train"]["loss_nats"]


def test_summary(bert_run: pathlib.Path, gpt_run: pathlib.Path) -> None:
    for run, digests in ((bert_run, {"parameters", "optimizer"}), (gpt_run, {"parameters", "optimizer", "ema"})):
        found, lines = summary(run), metrics(run)
        assert (found["status"], found["step"]) == ("finished", STEPS)
        assert (found["train"], found["eval"]) == (lines[-2], lines[-1])
        assert set(found["digests"]) == digests and len(set(found["digests"].values())) == len(digests)
        assert 0 < found["unigram_loss_nats"] < math.log(320)


def test_readable_output(bert_run: pathlib.Path, gpt_run: pathlib.Path) -> None:
    """Gaps filled by the encoder, text by the decoder, twice each; and suggested next steps."""
    bert, gpt = (run / "log.txt" for run in (bert_run, gpt_run))
    assert bert.read_text().count("->") == 2 and "%" in bert.read_text().split("->")[1]
    assert gpt.read_text().count("  | ") >= 2
    for log in (bert, gpt):
        for words in (
            "held-out after step 10",
            "held-out after step 20",
            "finished: 20 steps",
            "--config.data.source=",
        ):
            assert words in log.read_text()


def test_a_stored_config_and_the_same_seed_repeat_a_run_to_the_last_bit(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert call([f"--config={bert_run}/config.json", f"--workdir={tmp_path}"]) == 0
    assert same(bert_run, tmp_path)
    assert (tmp_path / "config.json").read_text() == (bert_run / "config.json").read_text()


def test_another_seed_is_another_run(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert lab.train(tmp_path, "--config.seed=1") == 0
    assert not same(bert_run, tmp_path)
    for name, digest in summary(bert_run)["digests"].items():
        assert summary(tmp_path)["digests"][name] != digest


def test_monitoring_and_saving_change_no_number(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """No samples, saving by the clock, keeping one."""
    keys = ("eval.num_samples=0", "checkpoint.every_steps=0", "checkpoint.every_minutes=0.003", "checkpoint.keep=1")
    assert lab.train(tmp_path, *(f"--config.{key}" for key in keys)) == 0
    assert same(bert_run, tmp_path)
    assert checkpoints(tmp_path) == [20]


@pytest.mark.parametrize(("variant", "upto"), [("bert", 6), ("gpt", 12)])
def test_resuming_in_the_middle_of_a_window_changes_no_number(
    lab: Lab, variant: str, upto: int, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(f"{variant}_run")
    workdir = copied(run, tmp_path, upto)
    assert lab.train(workdir, variant=variant) == 0
    assert f"resuming after step {upto}" in (workdir / "log.txt").read_text()
    assert same(run, workdir)
    assert checkpoints(workdir) == checkpoints(run)


def test_a_finished_run_is_unchanged(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = copied(bert_run, tmp_path)
    assert lab.train(workdir) == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (workdir / name).read_bytes() == (bert_run / name).read_bytes()
    assert checkpoints(workdir) == checkpoints(bert_run)
    assert len(json.loads((workdir / "environment.json").read_text())) == 2
    assert "step compiled" not in (workdir / "log.txt").read_text().split("resuming")[1]


def test_files_in_a_folder_are_the_same_text(lab: Lab, tmp_path: pathlib.Path) -> None:
    """The corpus cut at a document into two files is the same corpus, of which a run is a function."""
    documents = (lab.folder / "corpus.txt").read_text().split("\n\n")
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("\n\n".join(documents[:20]))
    (tmp_path / "texts" / "more" / "b.txt").write_text("\n\n".join(documents[20:]))
    (tmp_path / "texts" / "notes.md").write_text("not text to train on")
    base = replace(resolve(loading.load(f"{ROOT}/configs/quickstart.py")), tokenizer={"vocab_size": 320})
    sources = (lab.folder / "corpus.txt", tmp_path / "texts")
    one, two = (replace(base, data={"source": str(source), "cache_dir": str(tmp_path)}) for source in sources)
    assert open_corpus(one, tmp_path, print).digest == open_corpus(two, tmp_path, print).digest


def test_epochs_become_steps(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With the number of epochs that 20 steps make: ceil(epochs x examples / 8) = 20. The workdir accepts the run again."""
    epochs = metrics(bert_run)[0]["epoch"] / LOG * (STEPS - 0.5)
    flags = (f"--config.train.num_epochs={epochs}", "--config.train.num_steps=1")
    assert lab.train(tmp_path, *flags) == 0
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == STEPS
    assert same(bert_run, tmp_path)
    assert lab.train(tmp_path, *flags) == 0
    assert call([f"--config={tmp_path}", f"--workdir={tmp_path}"]) == 0


def test_tensorflow_datasets_and_a_custom_tokenizer(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("helpers.tiny_text_dataset")
    builder = tfds.builder("tiny_text_for_tests", data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    (tokenizer, *_) = (lab.folder / "cache").glob("*/tokenizer.model")
    keys = {
        "data.source": "tfds:tiny_text_for_tests",
        "data.tfds_dir": tmp_path / "tfds",
        "tokenizer.path": tokenizer,
        "data.validation_source": "tfds:tiny_text_for_tests@test",
        "data.cache_dir": "",
    }
    assert lab.train(tmp_path / "run", *(f"--config.{key}={value}" for key, value in keys.items())) == 0
    assert summary(tmp_path / "run")["status"] == "finished"
    (corpus,) = (tmp_path / "run" / "data").iterdir()  # without a cache it is in the workdir
    assert (corpus / "tokenizer.model").read_bytes() == tokenizer.read_bytes()


# ------------------------------------------------------------------------------------------- refusals


def test_a_workdir_of_another_run_is_refused(
    lab: Lab, bert_run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bert_run / "environment.json").read_text()
    assert lab.train(bert_run, "--config.seed=1", "--config.optimizer.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert "seed was 0, is 1" in error and "optimizer.learning_rate was 0.002, is 0.5" in error
    assert error.count(" was ") == 2
    assert (bert_run / "environment.json").read_text() == before


def test_a_workdir_in_use_is_refused(lab: Lab, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = run_directory.lock(tmp_path)
    assert lab.train(tmp_path) == 2
    assert "in use by another running process" in capsys.readouterr().err
    assert names(tmp_path) == {".lock"}
    handle.close()


def test_a_changed_corpus_is_refused_and_a_restored_one_is_not(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the content counts: the same text under another date, rebuilt, is the same corpus."""
    workdir, corpus = copied(bert_run, tmp_path), tmp_path / "mine.txt"
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"] = str(corpus)
    (workdir / "config.json").write_text(json.dumps(config))
    text = (lab.folder / "corpus.txt").read_text()
    corpus.write_text(text)
    assert lab.train(workdir, f"--config.data.source={corpus}") == 0
    corpus.write_text(text.replace("mountain", "valley"))
    assert lab.train(workdir, f"--config.data.source={corpus}") == 2
    error = capsys.readouterr().err
    assert str(workdir / "checkpoints") in error and "now has digest" in error and error.count("\n") == 1
    corpus.write_text(text)
    os.utime(corpus, (0, 0))
    assert lab.train(workdir, f"--config.data.source={corpus}") == 0
    assert same(bert_run, workdir)


# ------------------------------------------------------------------------------------------- a loss that is not finite


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, np.ndarray]]:
    """Make the training batch of step 8 (number 7) bad; return the batches that were fed, by number."""
    fed: dict[int, dict[str, np.ndarray]] = {}

    class Poisoned(BatchBuilder):
        def __call__(self, number: int) -> dict[str, np.ndarray]:
            batch = super().__call__(number)
            if self.seed is not None:
                fed[number] = batch
                if number == 7:
                    (weights,) = [name for name in batch if name.startswith("weights")]
                    batch[weights] = np.full_like(batch[weights], np.nan)
            return batch

    monkeypatch.setattr(fit, "BatchBuilder", Poisoned)
    return fed


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(
    lab: Lab,
    bert_run: pathlib.Path,
    tmp_path: pathlib.Path,
    poisoned: dict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):  # the same command reads the same batch again
        assert lab.train(tmp_path) == 3
        error = capsys.readouterr().err
        assert "Step 8 has a NaN or infinite loss" in error and error.count("\n") == 1
        assert "checkpoint 7" in error and "nonfinite/step_8.npz" in error
        assert checkpoints(tmp_path) == [6, 7]
        assert (summary(tmp_path)["status"], summary(tmp_path)["step"]) == ("nonfinite", 7)
        with np.load(tmp_path / "nonfinite" / "step_8.npz") as saved:
            assert set(saved) == set(poisoned[7])
            assert all(np.array_equal(saved[name], poisoned[7][name], equal_nan=name[0] == "w") for name in saved)
    # With the batch fixed the run resumes from the state before it and ends like the uninterrupted one.
    monkeypatch.undo()
    assert lab.train(tmp_path) == 0
    assert same(bert_run, tmp_path)


@pytest.mark.slow
def test_a_stopped_run_continues_by_skipping(lab: Lab, tmp_path: pathlib.Path, poisoned: dict) -> None:
    """train.on_nonfinite may change between restarts; the result is that of a run that skipped from the start."""
    skip = "--config.train.on_nonfinite=skip"
    assert lab.train(tmp_path / "stopped") == 3
    assert lab.train(tmp_path / "stopped", skip) == 0
    assert lab.train(tmp_path / "skipped", skip) == 0
    for a, b in zip(metrics(tmp_path / "stopped"), metrics(tmp_path / "skipped"), strict=True):
        for name in a:
            if name.endswith("nats"):
                assert a[name] == pytest.approx(b[name], rel=1e-5)
        assert a.get("skipped_steps") == b.get("skipped_steps")


def test_a_loss_that_is_not_finite_can_be_skipped(
    lab: Lab, gpt_run: pathlib.Path, tmp_path: pathlib.Path, poisoned: dict
) -> None:
    assert lab.train(tmp_path, variant="gpt") == 0
    assert summary(tmp_path)["status"] == "finished" and not (tmp_path / "nonfinite").exists()
    lines, clean = metrics(tmp_path), metrics(gpt_run)
    assert lines[0]["loss_nats"] == clean[0]["loss_nats"]  # steps 1 to 7
    assert [line.get("skipped_steps") for line in lines] == [None, None, 1, None]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert not same(gpt_run, tmp_path)

"""A run extended beyond its end with the same command: everything but the learning rate as if it had always been longer."""

from __future__ import annotations

import json
import pathlib

import pytest

from helpers.train_helpers import LOG, SAVE, STEPS, Lab, checkpoints, metrics, summary
from lm_research.config import resolve
from lm_research.run.extension import describe_changes

KEY = "--config."


def digests(workdir: pathlib.Path) -> dict[str, str]:
    found = summary(workdir)
    assert found["status"] == "finished"
    return found["digests"]


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        pytest.param(  # to its end
            ("schedule.name=constant", "schedule.warmup_ratio=0.0"), ("train.num_steps=8",), marks=pytest.mark.slow
        ),
        # decay of the last tenth: of 16 steps from step 14.4 on, of 20 from step 18 on; the run is stopped before
        (("schedule.name=wsd", "schedule.warmup_ratio=0.0"), ("train.num_steps=16", "train.stop_after=9")),
    ],
    ids=["constant", "wsd"],
)
def test_an_extended_run_equals_the_longer_run_where_the_rate_ignores_the_end(
    lab: Lab, tmp_path: pathlib.Path, schedule: tuple[str, ...], first: tuple[str, ...]
) -> None:
    flags = [KEY + key for key in schedule]
    assert lab.train(tmp_path / "whole", *flags) == 0
    assert lab.train(tmp_path / "longer", *flags, *(KEY + key for key in first)) == 0
    assert lab.train(tmp_path / "longer", *flags) == 0
    assert digests(tmp_path / "longer") == digests(tmp_path / "whole")
    line = [line for line in metrics(tmp_path / "longer") if "loss_nats" in line][-1]
    assert line["loss_nats"] == summary(tmp_path / "whole")["train"]["loss_nats"]  # its window began before the old end


def test_a_rate_that_does_not_depend_on_the_length_stays() -> None:
    config = resolve({"schedule": {"name": "inverse_sqrt", "warmup_steps": 4}, "train": {"num_steps": 20}})
    assert "in step 11, as before." in describe_changes(config, {"train.num_steps": (10, 20)}, 10)


def test_the_rate_is_that_of_the_new_length(
    lab: Lab, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of warm-up and a line to 0: step 14 of 20 has 2e-3 x (1 - (13 - 2) / 18); a run of 10 steps was at 0 in step 11."""
    assert lab.train(tmp_path, "--config.train.num_steps=10") == 0
    assert "larger --config.train.num_steps" in capsys.readouterr().out
    assert lab.train(tmp_path, "--config.checkpoint.keep=9") == 0
    said = capsys.readouterr().out
    assert "changed: train.num_steps was 10, is 20" in said and "changed: checkpoint.keep was 4, is 9" in said
    assert "continues from step 10 to 20" in said and "(linear)" in said
    assert f"{2e-3 * (1 - 8 / 18):.3g} in step 11, where it would have been 0." in said
    line = next(line for line in metrics(tmp_path) if line["step"] == 2 * LOG)
    assert line["learning_rate"] == pytest.approx(2e-3 * (1 - 11 / 18))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == STEPS
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["changed"].get("train.num_steps") for start in starts] == [None, [10, 20]]
    assert checkpoints(tmp_path) == [SAVE, 10, 12, 18, 20]
    # and not below the steps already taken
    assert lab.train(tmp_path, "--config.train.num_steps=15") == 2
    error = capsys.readouterr().err
    assert (
        "train.num_steps=15 ends after 15 steps" in error
        and "already done 20 steps" in error
        and error.count("\n") == 1
    )
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == STEPS


def test_monitoring_may_change_during_a_run(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert lab.train(tmp_path, "--config.train.stop_after=9") == 0
    keys = (
        "logging.every_steps=4",
        "eval.every_steps=5",
        "eval.num_batches=1",
        "profile.steps=12-12",
        "checkpoint.every_steps=0",
    )
    assert lab.train(tmp_path, *(KEY + key for key in keys)) == 0
    assert digests(tmp_path) == digests(bert_run)
    assert "changed: logging.every_steps was 7, is 4" in (tmp_path / "log.txt").read_text()
    assert [line["step"] for line in metrics(tmp_path) if "loss_nats" in line] == [7, 12, 16, 20]


@pytest.mark.slow  # the same by steps, and epochs that become steps, are default tests
def test_more_epochs(lab: Lab, tmp_path: pathlib.Path) -> None:
    """An epoch of E examples in batches of 8 is E / 8 steps, rounded up; config.json keeps both."""
    small = ("--config.eval.num_samples=0", "--config.train.batch_size=64", "--config.schedule.name=constant")
    assert lab.train(tmp_path, *small, "--config.train.num_epochs=0.5") == 0
    first = summary(tmp_path)["step"]
    assert lab.train(tmp_path, *small, "--config.train.num_epochs=1.0") == 0
    assert summary(tmp_path)["step"] in (2 * first, 2 * first - 1)
    assert f"resuming after step {first}" in (tmp_path / "log.txt").read_text()

"""compare: what counts as a difference between two finished runs, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_research import compare
from lm_research.config import default_config

LINES = [
    {"step": 10, "loss_nats": 5.25, "learning_rate": 0.001, "tokens_per_second": 8000.0, "mfu": 0.2},
    {"step": 20, "loss_nats": 4.5, "learning_rate": 0.002, "tokens_per_second": 8100.0, "mfu": 0.2},
    {"step": 20, "eval_loss_nats": 4.75, "eval_seconds": 1.5},
]
SUMMARY = {"status": "finished", "step": 20, "digests": {"parameters": "ab12", "optimizer": "cd34"}}


def make_run(
    directory: Path, lines: list[dict[str, Any]] = LINES, summary: dict[str, Any] = SUMMARY, **changes: Any
) -> str:
    """A run directory as train.py leaves it; `changes` are config keys with __ for the dot."""
    directory.mkdir()
    config = default_config().to_dict()
    for name, value in changes.items():
        section, leaf = name.split("__")
        config[section][leaf] = value
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "summary.json").write_text(json.dumps(summary))
    return str(directory)


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    """LINES with keys of one line changed; None drops the key."""
    lines = [dict(line) for line in LINES]
    lines[index].update(values)
    lines[index] = {key: value for key, value in lines[index].items() if value is not None}
    return lines


def test_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert compare.main([a, b, "--assert-equal"]) == 0
    out = capsys.readouterr().out
    assert "The runs are equal." in out
    assert "Metrics: same: 5 values, steps 10 to 20" in out  # 2 + 2 training, 1 evaluation; timings left out
    assert "Config: none" in out


def test_runs_that_continued_or_stopped_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = make_run(tmp_path / "stopped", summary=SUMMARY | {"status": "stopped"})
    assert compare.main([stopped, stopped]) == 0
    assert f"A  {stopped}  (stopped after step 20)" in capsys.readouterr().out
    went_on = make_run(tmp_path / "on", [*LINES, {"step": 30, "loss_nats": 4.0}])
    assert compare.main([stopped, went_on]) == 2
    assert "is of step 20, but metrics.jsonl extends to step 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    "timing",
    [
        dict(tokens_per_second=1.0),
        dict(mfu=0.9),
        dict(goodput=0.5),
        dict(step_seconds=3.0),
        dict(peak_memory_bytes=7),
        dict(host_memory_bytes=7),
    ],
)
def test_timings_do_not_count(tmp_path: Path, timing: dict[str, float]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", changed(1, **timing))
    assert compare.main([a, b, "--assert-equal"]) == 0


@pytest.mark.parametrize(
    "lines",
    [
        changed(0, loss_nats=5.250000000000001),  # the last bit
        changed(2, eval_loss_nats=4.0),
        changed(1, learning_rate=None),
        changed(1, grad_norm=1.0),
        changed(0, loss_nats=float("nan")),
        LINES[1:],
        [*LINES, {"step": 15, "loss_nats": 4.0}],
    ],
)
def test_any_other_metric_counts(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", lines)
    assert compare.main([a, b]) == 0  # only reports it
    assert compare.main([a, b, "--assert-equal"]) == 1
    assert compare.main([b, a, "--assert-equal"]) == 1


def test_nan_equals_nan(tmp_path: Path) -> None:
    lines = changed(1, loss_nats=float("nan"), grad_norm=float("inf"))
    a, b = make_run(tmp_path / "a", lines), make_run(tmp_path / "b", lines)
    assert compare.main([a, b, "--assert-equal"]) == 0


def test_names_the_first_step_and_both_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = changed(1, loss_nats=4.05)
    lines[2]["eval_loss_nats"] = 9.0
    compare.main([make_run(tmp_path / "a"), make_run(tmp_path / "b", lines)])
    out = capsys.readouterr().out
    assert "first difference at step 20; 1 of 2 logged steps differ" in out
    row = next(line for line in out.splitlines() if line.split()[:1] == ["loss_nats"])
    assert row.split() == ["loss_nats", "4.5", "4.05", "1.0e-01", "relative"]  # 0.45 / 4.5
    header = next(line for line in out.splitlines() if line.split() == ["A", "B"] and line.startswith("   "))
    assert header.index("A") == row.index("4.5")
    assert header.index("B") == row.index("4.05")


@pytest.mark.parametrize(
    "summary",
    [
        {**SUMMARY, "status": "stopped"},
        {**SUMMARY, "step": 21},
        {**SUMMARY, "digests": {"parameters": "ab13", "optimizer": "cd34"}},
        {**SUMMARY, "digests": {"parameters": "ab12", "optimizer": "cd35"}},
        {**SUMMARY, "digests": {"parameters": "ab12"}},
    ],
)
def test_status_steps_and_digests_count(tmp_path: Path, summary: dict[str, Any]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", summary=summary)
    assert compare.main([a, b]) == 0
    assert compare.main([a, b, "--assert-equal"]) == 1


def test_config_differences_are_shown_and_count_by_their_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", checkpoint__every_steps=7, optimizer__learning_rate=0.5)
    assert compare.main([a, b, "--assert-equal"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["checkpoint.every_steps"].split()[1:] == ["1000", "7", "no", "effect"]
    assert rows["optimizer.learning_rate"].split()[1:] == ["0.0001", "0.5"]


def test_runs_that_log_at_other_steps_are_compared_by_their_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A training line is a mean since the line before: a.loss at 20 covers 10 steps, b.loss at 20 covers 20.
    a = make_run(tmp_path / "a", LINES, logging__every_steps=10)
    b = make_run(tmp_path / "b", changed(1, loss_nats=4.875)[1:], logging__every_steps=20)
    assert compare.main([a, b, "--assert-equal"]) == 0
    assert "logging.every_steps differs): same: 1 values, steps 20 to 20" in capsys.readouterr().out
    for name, lines in (("c", changed(2, eval_loss_nats=1.0)), ("d", LINES[:2])):  # another evaluation, and none
        other = make_run(tmp_path / name, lines, logging__every_steps=20)
        assert compare.main([a, other, "--assert-equal"]) == 1


def test_a_step_done_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    again = [LINES[0], {"step": 20, "loss_nats": 9.9}, *LINES[1:]]
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", again)
    assert compare.main([a, b, "--assert-equal"]) == 0


def damage(directory: Path, how: str) -> None:
    if how == "missing":
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
    elif how == "unfinished":
        (directory / "summary.json").unlink()
    elif how == "no config":
        (directory / "config.json").unlink()
    elif how == "no metrics":
        (directory / "metrics.jsonl").unlink()
    elif how == "torn metrics":
        with (directory / "metrics.jsonl").open("a") as file:
            file.write('{"step": 30, "lo')
    elif how == "torn summary":
        (directory / "summary.json").write_text('{"status":')
    elif how == "no digests":
        (directory / "summary.json").write_text('{"status": "done", "step": 20, "digests": {}}')
    elif how == "metrics without a step":
        (directory / "metrics.jsonl").write_text('{"loss_nats": 1.0}\n')


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("missing", "is not a directory"),
        ("unfinished", "summary.json"),
        ("no config", "config.json"),
        ("no metrics", "metrics.jsonl"),
        ("torn metrics", "metrics.jsonl, line 4"),
        ("torn summary", "summary.json"),
        ("no digests", "lacks digests"),
        ("metrics without a step", "metrics.jsonl, line 1"),
    ],
)
def test_unusable_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, named: str, side: int
) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    damage(Path(runs[side]), how)
    assert compare.main(runs) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert runs[side] in error and named in error

"""Runs and studies with one file damaged: report notes it and continues, compare refuses in one paragraph. Nothing here is misread as something else."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest

from helpers.reporting_runs import write_run, write_study
from lm_research import compare, report

DEEP = "[" * 100_000
HUGE = "1" + "0" * 400
# file of a run -> invalid contents
DAMAGED = {
    "config.json": ["", "[]", DEEP, "\0", '{"train": {"num_steps": ' + "9" * 5000 + "}}"],
    "metrics.jsonl": [
        "",
        DEEP,
        "[]\n",
        '{"step": "1"}\n',
        '{"step": 1.5}\n',
        '{"step": -1}\n',
        '{"step": ' + HUGE + "}\n",
        '{"step": 1, "loss_nats": "x"}\n',
        '{"step": 1, "loss_nats": [1]}\n',
        '{"step": 1, "loss_nats": ' + HUGE + "}\n",
        '{"step": true}\n',
        "\udcff",
    ],
    "summary.json": [
        "",
        DEEP,
        "[]",
        '{"status": 3}',
        '{"status": "finished", "step": "4"}',
        '{"status": "finished", "step": ' + HUGE + "}",
        '{"status": "finished", "step": 25, "digests": ["a"]}',
        '{"status": "finished", "step": 25, "digests": {"a": 1}, "test": 3}',
    ],
    "environment.json": [
        "",
        DEEP,
        "{}",
        "[3]",
        '[{"parameters": ' + HUGE + ', "command": 3}]',
        '[{"parameters": -5, "versions": []}]',
    ],
    "time.json": [
        "",
        DEEP,
        "{}",
        "[[]]",
        "[{}]",
        '[{"begin": 0, "first": 0, "end": 9, "last": 1, "seconds": {"steps": NaN}}]',
        '[{"begin": 0, "first": 0, "end": 9, "last": 1, "seconds": {"eval": 1}}]',
        '[{"begin": "x", "first": 0, "end": 9, "last": 1, "seconds": {}}]',
    ],
    "log.txt": ["held-out", "2026-01-31 12:00:00 held-out after step " + "9" * 5000 + ":\n"],
}
CASES = [(name, text) for name, texts in DAMAGED.items() for text in texts]


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")


@pytest.mark.parametrize(("name", "text"), CASES, ids=lambda x: x[:40] if isinstance(x, str) else None)
def test_a_damaged_file(name: str, text: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    (bad / name).write_text(text, errors="surrogateescape")
    code = report.main([str(good), str(bad), f"--output={tmp_path / 'page.html'}"])
    err = capsys.readouterr().err
    assert code == (2 if name == "config.json" else 0), err
    assert "Traceback" not in err and (code == 0 or (err.count("\n") == 1 and "bad/config.json" in err))
    code = compare.main([str(good), str(bad)])
    out, err = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in err
    if name in ("summary.json", "metrics.jsonl") and text:
        assert code == 2 and f"bad/{name}" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", [*DAMAGED, "study.json"])
def test_a_pipe_does_not_block(name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert report.main([str(run)]) == (2 if name in ("config.json", "study.json") else 0)
    assert compare.main([str(run), str(run)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


TRIAL = {"number": 0, "params": {"seed": 1}, "value": 1.0, "state": "complete", "run": "trials/0000"}


@pytest.mark.parametrize(
    "changes",
    [
        {"number": "0"},
        {"number": 10**30},
        {"number": -1},
        {"params": []},
        {"params": {"seed": [1]}},
        {"params": {"seed": 10**30}},
        {"value": "1"},
        {"value": 10**400},
        {"state": 3},
        {"run": 3},
        {"state": None},
    ],
)
def test_a_damaged_study(changes: dict[str, Any], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", [TRIAL | changes])
    assert report.main([str(study)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "study.json" in err and next(iter(changes)) in err


@pytest.mark.parametrize("run", ["x" * 300, "a\0b", "../../..", "\udcff"])
def test_a_trial_with_an_odd_folder(run: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", [TRIAL | {"run": run}])
    assert report.main([str(study), f"--output={tmp_path / 'page.html'}"]) == 0
    assert "No curves of trials 0" in (tmp_path / "page.html").read_text()


def test_a_study_too_deep(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"trials": []})[:-1] + ', "x": ' + DEEP)
    assert report.main([str(tmp_path)]) == 2
    assert "nested" in capsys.readouterr().err

"""Which trial a worker gets, what becomes of it, and the table, with results that the test makes up."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import types
from typing import Any

import pytest

from lm_research.errors import ConfigError

pytest.importorskip("optuna")
from lm_research.sweeping import study as study_module
from lm_research.sweeping.study import PATIENCE, Study, alive, this_worker, write_table
from lm_research.sweeping.sweep import Choice, Sweep, Uniform

CONFIG = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "quickstart.py")
LAYERS = "model.num_layers"


def claim(study: Study, count: int) -> list[Any]:
    return [study.claim(this_worker()) for _ in range(count)]


def test_the_best_third_continues(tmp_path: pathlib.Path) -> None:
    """Of five trials ceil(5 / 3) = 2, at step 2; of equally good ones those that came first. The largest value is the best."""
    sweep = Sweep(CONFIG, {LAYERS: Choice(1, 2, 3, 4, 5)}, rungs=(2, 6), eta=3, direction="maximize", metric="score")
    study = Study(sweep, tmp_path / "study")
    trials = claim(study, 5)
    assert [trial.params[LAYERS] for trial in trials] == [1, 2, 3, 4, 5] and claim(study, 1) == [None]
    assert [study.goal(trial) for trial in trials] == [2] * 5
    for number, value in enumerate((3.0, 9.0, 9.0, 1.0, 9.0)):
        assert not study.finished()
        study.reached(trials[number], value)
    again = claim(study, 3)
    assert [trial and trial.number for trial in again] == [1, 2, None]
    assert [study.goal(trial) for trial in again[:2]] == [0, 0]  # to the end
    study.reached(again[0], 8.0)
    assert not study.finished()
    study.reached(again[1], 10.123456789)
    assert study.finished() and claim(study, 1) == [None] and study.all_failed() == ""
    assert study.trials()[1].intermediate_values == {2: 9.0, 6: 8.0}
    text = write_table(study)
    assert (tmp_path / "study" / "table.md").read_text() == text
    head, line, *rows = text.splitlines()
    assert head == f"| trial | {LAYERS} | score | state |" and line == "|---|---|---|---|"
    assert rows == [
        "| 2 | 3 | 10.1235 | complete |",
        "| 1 | 2 | 8 | complete |",
        "| 4 | 5 | 9 | pruned |",
        "| 0 | 1 | 3 | pruned |",
        "| 3 | 4 | 1 | pruned |",
    ]
    stored = (tmp_path / "study" / "study.json").read_text()
    content = json.loads(stored)
    assert stored == json.dumps(content, indent=1) + "\n"
    assert (content["metric"], content["direction"], content["rungs"]) == ("score", "maximize", [2, 6])
    first = {"number": 0, "params": {LAYERS: 1}, "value": 3.0, "state": "pruned", "run": "trials/0000", "reason": ""}
    assert content["trials"][0] == first and content["digest"] == sweep.digest()
    with pytest.raises(ConfigError, match="contains the study of another sweep"):
        Study(Sweep(CONFIG, {LAYERS: Choice(1, 2)}), tmp_path / "study")


def test_equal_trials_share_a_failure(tmp_path: pathlib.Path) -> None:
    study = Study(Sweep(CONFIG, {LAYERS: Choice(2)}, method="random", num_trials=3), tmp_path / "study")
    trial, nothing = claim(study, 2)
    assert trial.number == 0 and nothing is None and study.all_failed() == ""
    study.fail(0, "It diverged.")
    assert claim(study, 1) == [None] and study.finished() and study.all_failed() == "It diverged."
    rows = study.table()["trials"]
    assert [(row["state"], row["run"], row["reason"], row["value"]) for row in rows] == [
        ("failed", "trials/0000", "It diverged.", None)
    ] * 3


def test_a_pruned_and_a_released_trial(tmp_path: pathlib.Path) -> None:
    study = Study(Sweep(CONFIG, {LAYERS: Choice(1, 2)}), tmp_path / "study")
    first, second = claim(study, 2)
    study.prune(first.number)
    study.release(second)
    assert [trial and trial.number for trial in claim(study, 2)] == [1, None]
    study.reached(second, 4.0)
    assert study.finished() and study.all_failed() == ""
    assert write_table(study).splitlines()[2:] == ["| 1 | 2 | 4 | complete |", "| 0 | 1 |  | pruned |"]


def test_a_trial_whose_values_are_invalid_fails_and_the_next_one_is_claimed(tmp_path: pathlib.Path) -> None:
    study = Study(Sweep(CONFIG, {LAYERS: Choice(-1, 2)}), tmp_path / "study")
    (trial,) = claim(study, 1)
    assert trial.number == 1
    (failed, _) = study.table()["trials"]
    assert failed["state"] == "failed" and "model.num_layers" in failed["reason"]


def test_a_study_of_invalid_trials_has_the_reason_of_the_first(tmp_path: pathlib.Path) -> None:
    study = Study(Sweep(CONFIG, {LAYERS: Choice(-1, -2)}), tmp_path / "study")
    assert claim(study, 1) == [None] and "num_layers is -1" in study.all_failed()


def test_a_model_of_the_results_has_a_seed_for_each_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a resumed study draws what it would have drawn."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(study_module.optuna.samplers, "TPESampler", lambda **options: given.append(options))
    sweep = Sweep(CONFIG, {LAYERS: Uniform(1, 4, integer=True)}, method="tpe", num_trials=4, seed=5000)
    Study._sampler(types.SimpleNamespace(sweep=sweep), 3)
    assert given == [{"seed": 5000 * 1_000_003 + 3 - 2**32, "multivariate": True}]


def test_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    own = this_worker()
    assert set(own["processes"]) == {str(os.getpid())} and own["host"] == socket.gethostname() and alive(own)
    assert this_worker(2**22 + 5)["processes"] == own["processes"]  # no process has that number
    child = own | {"processes": {"4194309": "1", **own["processes"]}}
    assert alive(child) and not alive(own | {"processes": {str(os.getpid()): "1"}})  # another one had the number
    other = own | {"host": "another", "time": 1000.0}
    for now, living in ((1000.0 + PATIENCE - 1, True), (1000.0 + PATIENCE, False)):
        monkeypatch.setattr(study_module.time, "time", lambda now=now: now)
        assert alive(other) == living


@pytest.mark.parametrize(("state", "start"), [("S", "77"), ("Z", "")])
def test_a_process_is_known_by_its_start(state: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proc(5): the state is field 3, the start field 22; the name before them may have any characters. Z has ended."""
    text = f"5 (a) (b c) {state} " + " ".join(["0"] * 18) + " 77 99"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: text)
    assert study_module.start_time(5) == start

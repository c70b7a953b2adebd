"""A study ends with the same table whatever happens to its processes."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from lm_research.errors import ConfigError

pytest.importorskip("optuna")
from lm_research.sweeping.study import Study, alive, this_worker
from lm_research.sweeping.sweep import Choice, Sweep, load

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE, LAYERS = "optimizer.learning_rate", "model.num_layers"
SWEEP = """
from lm_research.sweeping import Choice, Sweep, Uniform

def get_sweep():
    return Sweep({config!r}, {space}, fixed={{"train.num_steps": {steps}}}, module="toy_train", {more})
"""
GRID = "{'optimizer.learning_rate': Choice(1e-4, 1e-3, 1e-2), 'model.num_layers': Choice(1, 2, 3, 4)}"


def write_sweep(folder: pathlib.Path, space: str = GRID, steps: int = 30, more: str = "") -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / "sweep.py", str(ROOT / "configs" / "quickstart.py")
    if "rungs" in more:
        text = SWEEP.replace('fixed={{"train.num_steps": {steps}}}, ', "")
    else:
        text = SWEEP
    path.write_text(text.format(config=config, space=space, steps=steps, more=more))
    return path


def start(sweep: pathlib.Path, workdir: pathlib.Path | str, *flags: str, alone: bool = False) -> subprocess.Popen[str]:
    """The command; `alone` in a separate process group."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweeping"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "experiments.run", f"--sweep={sweep}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=alone,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def table(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "study.json").read_text())


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [
            int(child)
            for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children")
            for child in path.read_text().split()
        ]
    except OSError:
        return []


def starts(workdir: pathlib.Path) -> list[list[int]]:
    """For each trial, the number of finished steps at each start."""
    return [[int(step) for step in path.read_text().split()] for path in sorted(workdir.glob("trials/*/starts.txt"))]


@pytest.mark.slow
def test_a_grid_whose_workers_are_killed_at_random_ends_with_the_same_table(tmp_path: pathlib.Path) -> None:
    """Ten times: the driver (its trials save and end by themselves), or the process of a trial, wherever it is."""
    sweep = write_sweep(tmp_path)
    finish(start(sweep, tmp_path / "whole", "--workers=2"))
    whole = table(tmp_path / "whole")
    assert [trial["state"] for trial in whole["trials"]] == ["complete"] * 12
    # (log10(rate) + 3)^2 + 1 / 30 + layers / 100, of 1e-3 and one layer the smallest
    values = {(t["params"][RATE], t["params"][LAYERS]): t["value"] for t in whole["trials"]}
    assert values[1e-3, 1] == pytest.approx(1 / 30 + 0.01) and values[1e-2, 4] == pytest.approx(1 + 1 / 30 + 0.04)
    assert starts(tmp_path / "whole") == [[0]] * 12

    draw, workdir, kills = random.Random(3), tmp_path / "killed", 0
    process = start(sweep, workdir, "--workers=2")
    while kills < 10:
        while not (trials := children(process.pid)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 1.0))
        if process.poll() is not None:  # finished, or ended by an error
            break
        victim = draw.choice([process.pid, *trials])
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills += 1
        if victim == process.pid:
            process.communicate()
            process = start(sweep, workdir, "--workers=2")
    finish(process)
    assert kills >= 4
    assert table(workdir) == whole
    assert (workdir / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    assert any(len(steps) > 1 for steps in starts(workdir))
    assert all(sorted(steps) == steps for steps in starts(workdir))  # each resumed where it was


def test_two_drivers_of_one_study_never_run_the_same_trial(tmp_path: pathlib.Path) -> None:
    sweep = write_sweep(tmp_path)
    drivers = [start(sweep, tmp_path / "study", "--workers=2") for _ in range(2)]
    for driver in drivers:
        finish(driver)
    assert starts(tmp_path / "study") == [[0]] * 12
    assert {trial["state"] for trial in table(tmp_path / "study")["trials"]} == {"complete"}


def test_failures_are_reported_and_stop_nothing(tmp_path: pathlib.Path) -> None:
    """13 layers are an error, 14 crash once and resume, 15 crash each time, 2 are requested twice."""
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(13, 14, 15, 2), 'train.batch_size': Choice(32, -4)}"
    output = finish(start(write_sweep(tmp_path, space, steps=5), tmp_path / "study"))
    rows = {(t["params"][LAYERS], t["params"]["train.batch_size"]): t for t in table(tmp_path / "study")["trials"]}
    assert (
        rows[13, 32]["state"] == "failed" and rows[13, 32]["reason"] == "thirteen layers bring bad luck. Take twelve."
    )
    assert rows[14, 32]["state"] == "complete" and rows[2, 32]["state"] == "complete"
    assert rows[15, 32]["state"] == "failed" and "signal 9 3 times after step 0" in rows[15, 32]["reason"]
    assert all(
        rows[layers, -4]["state"] == "failed" and "batch_size" in rows[layers, -4]["reason"]
        for layers in (13, 14, 15, 2)
    )
    assert "trial 0: failed: thirteen layers" in output and "Traceback" not in output
    assert output.rstrip().endswith("table.md")


def test_ctrl_c_on_a_terminal_saves_running_trials(tmp_path: pathlib.Path) -> None:
    """A terminal's Ctrl-C goes to all processes of the command."""
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(1)}"
    sweep, workdir = write_sweep(tmp_path, space, steps=60), tmp_path / "study"
    process = start(sweep, workdir, alone=True)
    while not (workdir / "trials" / "0000" / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert "continues the study" in finish(process, code=75)
    finish(start(sweep, workdir))
    ((first, second),) = starts(workdir)
    assert first == 0 and 0 < second < 60


def test_a_study_of_only_failures_ends_with_an_error(tmp_path: pathlib.Path) -> None:
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(13)}"
    output = finish(start(write_sweep(tmp_path, space, steps=5), tmp_path / "study"), code=2)
    assert "All trials" in output and "thirteen layers" in output.splitlines()[-1] and "Traceback" not in output


@pytest.mark.parametrize(
    ("workdir", "words"),
    [("", "is empty"), ("az://container/study", "remote address"), ("FILE", "is a file"), ("~/study", "")],
)
def test_a_study_is_where_its_runs_are(
    workdir: str, words: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(1)}"
    sweep = write_sweep(tmp_path, space, steps=2)
    output = finish(start(sweep, workdir.replace("FILE", str(sweep))), code=2 if words else 0)
    assert words in output and "Traceback" not in output
    assert (tmp_path / "study" / "study.json").is_file() == (not words)


def test_a_workdir_may_have_any_name(tmp_path: pathlib.Path) -> None:
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(1)}"
    workdir = tmp_path / "a b?c#d%20{e}"
    finish(start(write_sweep(tmp_path, space, steps=2), workdir))
    assert {"study.db", "study.json", "trials"} <= {path.name for path in workdir.iterdir()}


def test_a_worker_that_dies_at_the_last_rung_leaves_no_unfinished_trial(tmp_path: pathlib.Path) -> None:
    """Between storing a trial's value and reporting that it has ended."""
    sweep = Sweep(str(ROOT / "configs" / "quickstart.py"), {RATE: Choice(1e-3)}, rungs=(4, 8))
    study = Study(sweep, tmp_path)
    trial = study.claim(this_worker())
    study.reached(trial, 2.0)
    trial = study.claim(this_worker())
    trial.set_user_attr("rungs", [2.0, 1.5])
    study.release(trial)
    again = Study(sweep, tmp_path)
    assert again.claim(this_worker()) is None and again.finished()
    assert again.table()["trials"][0]["value"] == 1.5


def test_a_trial_that_still_runs_elsewhere_is_awaited(tmp_path: pathlib.Path) -> None:
    """As a job of Slurm that outlived its driver does."""
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(1)}"
    where = tmp_path / "study" / "trials" / "0000"
    where.mkdir(parents=True)
    with (where / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start(write_sweep(tmp_path, space, steps=2), tmp_path / "study")
        assert "study" in process.stdout.readline()
        assert "waiting for another process" in process.stdout.readline()
    finish(process)
    assert table(tmp_path / "study")["trials"][0]["state"] == "complete"


def test_a_sweep_that_changed_is_refused(tmp_path: pathlib.Path) -> None:
    space = "{'optimizer.learning_rate': Choice(1e-3), 'model.num_layers': Choice(1)}"
    finish(start(write_sweep(tmp_path, space, steps=3), tmp_path / "study"))
    output = finish(start(write_sweep(tmp_path, space, steps=4), tmp_path / "study"), code=2)
    assert "contains the study of another sweep" in output and "Traceback" not in output


def test_halving_promotes_the_better_half_from_their_checkpoints(tmp_path: pathlib.Path) -> None:
    """Eight trials to step 4, four of them to 8, two to 16: 8 x 4 + 4 x 4 + 2 x 8 steps, none twice."""
    space = "{'optimizer.learning_rate': Choice(1e-4, 1e-3), 'model.num_layers': Choice(1, 2, 3, 4)}"
    finish(start(write_sweep(tmp_path, space, more="rungs=(4, 8, 16)"), tmp_path / "study", "--workers=2"))
    rows = table(tmp_path / "study")["trials"]
    # Fewer layers are better, and 1e-3 is better than 1e-4 by 1: 1e-3 continues with four, then with the first two.
    found = {(t["params"][RATE], t["params"][LAYERS]): (t["state"], t["value"]) for t in rows}
    assert [found[1e-3, layers][0] for layers in (1, 2, 3, 4)] == ["complete", "complete", "pruned", "pruned"]
    assert [found[1e-4, layers] for layers in (1, 2)] == [
        ("pruned", pytest.approx(1.26)),
        ("pruned", pytest.approx(1.27)),
    ]
    assert found[1e-3, 1][1] == pytest.approx(1 / 16 + 0.01) and found[1e-3, 3][1] == pytest.approx(1 / 8 + 0.03)
    assert sorted(map(tuple, starts(tmp_path / "study"))) == [(0,)] * 4 + [(0, 4)] * 2 + [(0, 4, 8)] * 2


def test_a_model_of_the_results_finds_the_better_region_reproducibly(tmp_path: pathlib.Path) -> None:
    space = "{'optimizer.learning_rate': Uniform(1e-6, 1.0, log=True), 'model.num_layers': Choice(1)}"
    sweep = write_sweep(tmp_path, space, steps=2, more="method='tpe', num_trials=30")
    distances: dict[str, list[float]] = {"one": [], "two": []}
    for name, trials in (("one", 30), ("two", 14)):
        study = Study(load(str(sweep)), tmp_path / name)
        for _ in range(trials):
            trial = study.claim(this_worker())
            distances[name].append(abs(math.log10(trial.params[RATE]) + 3))
            study.reached(trial, distances[name][-1] ** 2)
        assert study.finished() == (trials == 30)
    assert distances["one"][:14] == distances["two"]
    later = distances["one"][10:]  # ten are drawn at random first
    assert sum(later) / len(later) < 1.0  # even draws from [-6, 0] are 1.5 away from the best, -3, on average


def test_equal_trials_are_run_once(tmp_path: pathlib.Path) -> None:
    """Three random draws out of two values."""
    sweep = Sweep(
        str(ROOT / "configs" / "quickstart.py"), {LAYERS: Choice(1, 2)}, method="random", num_trials=6, seed=1
    )
    study, run = Study(sweep, tmp_path / "study"), []
    while (trial := study.claim(this_worker())) is not None:
        run.append(trial.params[LAYERS])
        study.reached(trial, float(trial.params[LAYERS]))
    assert sorted(run) == [1, 2]
    rows = study.table()["trials"]
    assert [row["value"] for row in rows] == [float(row["params"][LAYERS]) for row in rows]
    assert sum("the same run as trial" in row["reason"] for row in rows) == 4


def test_a_lease_lapses_with_its_process() -> None:
    process = subprocess.Popen(["sleep", "60"])
    lease = this_worker(process.pid) | {
        "processes": {str(process.pid): this_worker(process.pid)["processes"][str(process.pid)]}
    }
    assert alive(lease)
    process.kill()
    process.wait()
    assert not alive(lease) and not alive(None)
    other = lease | {"host": "another"}
    assert alive(other) and not alive(other | {"time": time.time() - 3600})


def test_an_unreachable_storage_is_reported(tmp_path: pathlib.Path) -> None:
    sweep = Sweep(str(ROOT / "configs" / "quickstart.py"), {LAYERS: Choice(1, 2)})
    with pytest.raises(ConfigError, match="cannot be used"):
        Study(sweep, tmp_path, "nosuch://database")

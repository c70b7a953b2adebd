"""Every study's sweep resolves, its tables hold the numbers of its trials, and one command runs them all."""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import run, run_studies, table
from experiments.scaling_law import fit
from lm_research.errors import ConfigError, DataError
from lm_research.reporting.studies import read_study
from lm_research.sweeping import sweep as sweeps

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("lr_batch", "masking_rate", "sentence_pairs", "norm_placement", "packing", "optimizers", "scaling_law", "mup")
VARIABLES = ("CONFIG", "STEPS", "SEEDS", "TRIALS", "TOKENS", "SIZES", "WIDTHS", "FROM", "VERSES")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in VARIABLES:
        monkeypatch.delenv(f"STUDY_{name}", raising=False)


def load(name: str, file: str = "sweep.py") -> sweeps.Sweep:
    return sweeps.load(str(ROOT / "experiments" / name / file))


@pytest.mark.parametrize("name", NAMES)
def test_every_trial_of_a_study_is_a_separate_config(name: str) -> None:
    sweep = load(name)
    digests = {sweeps.config_digest(sweep, sweep.planned(number)) for number in range(sweep.num_trials)}
    assert len(digests) == sweep.num_trials <= 75
    assert sweep.fixed["logging.trackers"] == "none"
    assert (ROOT / "experiments" / name / "README.md").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_large_config_keeps_its_own_model_and_checkpoints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = name in ("masking_rate", "sentence_pairs", "packing")
    monkeypatch.setenv("STUDY_CONFIG", "configs/bert_base.py" if encoder else "configs/gpt2_small.py")
    monkeypatch.setenv("STUDY_SEEDS", "1")
    monkeypatch.setenv("STUDY_TRIALS", "2")
    sweep = load(name)
    assert sweep.num_trials == 2 and not {"logging.trackers", "checkpoint.every_steps"} & sweep.fixed.keys()
    for number in range(2):
        sweeps.config_digest(sweep, sweep.planned(number))


def test_batches_of_any_size_read_the_same_number_of_tokens() -> None:
    sweep = load("lr_batch")
    assert sweep.fixed["train.budget"] == "3e5tokens"
    assert {point["train.batch_size"] for point in sweep.points} == {16, 32, 64, 128}


def test_a_stopped_study_has_the_whole_table_of_its_first_seeds() -> None:
    for name in ("lr_batch", "norm_placement", "mup"):
        seeds = [point["seed"] for point in load(name).points]
        assert seeds == sorted(seeds) and len(set(seeds)) > 1
        assert {seeds.count(seed) for seed in seeds} == {len(seeds) // len(set(seeds))}


def test_masking_rates_are_evaluated_at_one_rate() -> None:
    assert load("masking_rate").fixed["objective.eval_mask_rate"] == 0.15


def test_each_optimizer_has_the_same_number_of_rates() -> None:
    points = load("optimizers").points
    names = [point["optimizer.name"] for point in points]
    assert {names.count(name) for name in names} == {5} and {"adamw", "lion", "adafactor", "lamb", "sgd"} <= set(names)


def test_seeds_continue_with_the_best_rate_of_each(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set STUDY_FROM"):
        load("optimizers", "seeds.py")
    rows = [("adamw", 0.1, 3.0), ("adamw", 0.2, 2.0), ("lion", 0.3, 4.0), ("lion", 0.4, 5.0)]
    params = ("optimizer.name", "optimizer.learning_rate")
    write(tmp_path, params, [(row[:2], {"eval_loss_nats": row[2]}) for row in rows])
    monkeypatch.setenv("STUDY_FROM", str(tmp_path))
    sweep = load("optimizers", "seeds.py")
    assert [tuple(point.values()) for point in sweep.points] == [
        (name, rate, seed) for seed in (1, 2, 3) for name, rate in (("adamw", 0.2), ("lion", 0.3))
    ]


def test_steps_replace_budgets_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_STEPS", "7")
    for name in ("lr_batch", "packing"):
        fixed = load(name).fixed
        assert fixed["train.num_steps"] == 7 and not fixed["train.budget"] and not fixed["train.num_epochs"]


def write(folder: pathlib.Path, keys: tuple[str, ...], trials: list[tuple[tuple, dict[str, float]]]) -> None:
    """A study of these trials: values of the keys, and metrics; without metrics a trial has failed."""
    listed = []
    for number, (values, metrics) in enumerate(trials):
        where = folder / "trials" / f"{number:04d}"
        where.mkdir(parents=True, exist_ok=True)
        (where / "summary.json").write_text(
            json.dumps({"train": {"x": 1.0}, "eval": metrics, "seconds": {"a": 2, "b": 3}})
        )
        state = {"state": "complete" if metrics else "failed", "value": metrics.get("eval_loss_nats")}
        params = dict(zip(keys, values, strict=True))
        listed.append({"number": number, "params": params, "run": f"trials/{number:04d}", **state})
    content = {"metric": "eval_loss_nats", "direction": "minimize", "trials": listed}
    (folder / "study.json").write_text(json.dumps(content))


def test_a_table_has_means_and_deviations_over_seeds(tmp_path: pathlib.Path) -> None:
    losses = {("post", 0): 3.1, ("post", 1): 5.1, ("pre", 0): 2.0, ("pre", 1): 2.5, ("none", 0): None, ("none", 1): 2.0}
    trials = [(key, {"eval_loss_nats": loss} if loss else {}) for key, loss in losses.items()]
    write(tmp_path, ("model.norm_position", "seed"), trials)
    # Of 3.1 and 5.1 the mean is 4.1 and the deviation sqrt((1 + 1) / 1) = 1.4142; of 2 and 2.5 they are 2.25 and sqrt(0.125) = 0.3536.
    assert table.table(read_study(tmp_path), ["eval_loss_nats", "seconds"]).splitlines() == [
        "| model.norm_position | eval_loss_nats | seconds |",
        "| --- | --- | --- |",
        "| post | 4.1000 ± 1.4142 (2) | 5 ± 0 (2) |",
        "| pre | 2.2500 ± 0.3536 (2) | 5 ± 0 (2) |",
        "| none | **2** (1 of 2) | 5 (1 of 2) |",
    ]
    write(
        tmp_path,
        ("model.norm_position",),
        [(("post",), {"eval_loss_nats": 3.0, "sop": 0.5}), (("pre",), {"eval_loss_nats": 2.0})],
    )
    assert table.table(read_study(tmp_path), ["sop"]).splitlines()[2:] == ["| post | 0.5000 |", "| pre | - |"]
    with pytest.raises(ConfigError, match="no metric 'loss'"):
        table.table(read_study(tmp_path), ["loss"])


def test_a_key_may_form_the_columns(tmp_path: pathlib.Path) -> None:
    points = [((64, 0.01), 3.0), ((64, 0.001), 4.0), ((128, 0.01), 2.0), ((128, 0.001), None)]
    write(tmp_path, ("width", "rate"), [(key, {"eval_loss_nats": loss} if loss else {}) for key, loss in points])
    assert table.table(read_study(tmp_path), across="rate").splitlines()[2:] == [
        "| width | rate 0.001 | rate 0.01 |",
        "| --- | --- | --- |",
        "| 64 | 4 | 3 |",
        "| 128 | none of 1 finished | **2** |",
    ]
    with pytest.raises(ConfigError, match="--across=depth"):
        table.table(read_study(tmp_path), across="depth")


def test_seeds_may_form_the_columns_and_equal_runs_count_once(tmp_path: pathlib.Path) -> None:
    points = [(("pre", 0), 3.0), (("pre", 1), 5.0), (("post", 0), 4.0)]
    write(tmp_path, ("norm", "seed"), [(key, {"eval_loss_nats": loss}) for key, loss in points])
    content = json.loads((tmp_path / "study.json").read_text())
    twin = content["trials"][0] | {"number": 3}  # the same run again, and a trial that was just requested
    content["trials"] += [twin, {"number": 4, "params": {}, "state": "running", "value": None, "run": "trials/0004"}]
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert table.table(read_study(tmp_path), across="seed").splitlines()[2:] == [
        "| norm | seed 0 | seed 1 |",
        "| --- | --- | --- |",
        "| pre | **3** | 5 |",
        "| post | 4 |  |",
    ]
    # (3 + 5) / 2, and sqrt((1 + 1) / 1)
    assert table.table(read_study(tmp_path)).splitlines()[2] == "| pre | **4.0 ± 1.4** (2) |"


@pytest.mark.parametrize("value", ["0", "abc", "", "-1", "1.5"])
@pytest.mark.parametrize("name", ["STEPS", "SEEDS", "TRIALS"])
def test_a_variable_that_is_not_a_number_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"STUDY_{name}", value)
    with pytest.raises(ConfigError, match=f"STUDY_{name}='{value}' is not a whole number above 0"):
        load("masking_rate")


def test_a_law_is_recovered_from_the_runs_of_a_study(tmp_path: pathlib.Path) -> None:
    points = [(n, d) for n in (1e5, 2e5, 4e5, 8e5, 1.6e6) for d in (1e6, 2e6, 4e6, 8e6)]

    # E = 1.5, A = 400, alpha = 0.5, B = 300, beta = 0.4
    def loss(n, d):
        return 1.5 + 400 / n**0.5 + 300 / d**0.4

    write(tmp_path, ("n", "d"), [(point, {"eval_loss_nats": loss(*point)}) for point in points])
    for number, (n, d) in enumerate(points):
        where = tmp_path / "trials" / f"{number:04d}"
        (where / "config.json").write_text("{}")
        (where / "environment.json").write_text(json.dumps([{"parameters": int(n)}]))
        rate = {"step": 100, "loss_nats": 1.0, "tokens_per_second": d / 100, "step_seconds": 1.0}
        last = {"step": 100, "eval_lm_loss_nats": loss(n, d)}
        (where / "metrics.jsonl").write_text(json.dumps(rate) + "\n" + json.dumps(last) + "\n")
        (where / "summary.json").write_text(json.dumps({"status": "finished", "step": 100}))
    rows = dict(line.strip("| ").split(" | ")[:2] for line in fit.law(tmp_path).splitlines() if line.startswith("| "))
    found = [float(rows[name]) for name in ("E", "A", "alpha", "B", "beta")]
    np.testing.assert_allclose(found, [1.5, 400, 0.5, 300, 0.4], rtol=0.01)
    write(tmp_path, ("n", "d"), [((1, 1), {"eval_loss_nats": 1.0})])
    with pytest.raises(DataError, match="one size"):
        fit.law(tmp_path)


def test_a_failing_study_does_not_stop_the_others(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("optuna")
    command = """
import pathlib, sys
from experiments import run_studies
run_studies.STUDIES = {"bad": ("lr/no_such_sweep.py", []), "worse": ("lr/nor_this.py", [("experiments.table",)])}
sys.exit(run_studies.main(sys.argv[1:]))
"""
    flags = [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("bad: failed with exit code 2\nworse: failed with exit code 2\n")
    assert "there is no such file" in (tmp_path / "out" / "bad.log").read_text()
    assert not (tmp_path / "out" / "worse.md").exists()  # nothing that looks like a result


def test_the_command_lists_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    files = {file for file, _ in run_studies.STUDIES.values()}
    assert {f"{name}/sweep.py" for name in NAMES} <= files
    assert all((ROOT / "experiments" / file).is_file() for file in files)
    assert run_studies.main(["--workdir=x", "--output=y", "--only=mub"]) == 2
    assert "mup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workers", "launcher", "given", "found"),
    [
        (1, "local", [], {}),
        (4, "slurm", [], {}),
        (4, "local", [], {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
        (
            4,
            "local",
            ["XLA_PYTHON_CLIENT_PREALLOCATE=true", "A=b=c"],
            {"XLA_PYTHON_CLIENT_PREALLOCATE": "true", "A": "b=c"},
        ),
    ],
)
def test_trials_side_by_side_share_a_gpu(
    workers: int, launcher: str, given: list[str], found: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert run.environment(argparse.Namespace(workers=workers, launcher=launcher, env=given)) == found

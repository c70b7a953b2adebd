"""Trackers with stand-ins for wandb and mlflow that record their calls, and fail or hang on command."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import threading
import time
import types
from typing import Any

import pytest

from helpers.train_helpers import Lab, metrics
from lm_research.config import resolve, tracker_names
from lm_research.errors import ConfigError
from lm_research.run.trackers import threads
from lm_research.run.trackers.base import TRACKERS, TrackedRun, Tracker
from lm_research.run.trackers.threads import Trackers, check_installed, redact


class Recorder:
    """The calls that the stand-ins received, as (call, arguments); `broken` names calls that raise, `hung` one that never returns."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.broken: set[str] = set()
        self.hung: set[str] = set()
        self.runs: list[str] = []

    def __call__(self, call: str, told: Any = None) -> None:
        if call in self.hung:
            threading.Event().wait()
        if call in self.broken:
            raise OSError(28, f"No space left on device during {call}, api_key=hunter2hunter2 at http://me:pw123@host/")
        self.calls.append((call, told))

    def told(self, call: str) -> list[Any]:
        return [told for name, told in self.calls if name == call]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Install stand-ins for both packages where an import finds them."""
    found = Recorder()

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None: ...
        def log(self, values: dict[str, Any]) -> None:
            found("wandb.log", values)

        def finish(self, exit_code: int) -> None:
            found("wandb.finish", exit_code)

    def init(**told: Any) -> Run:
        found("wandb.init", told)
        return Run()

    class Client:
        def __init__(self, address: str) -> None:
            found("mlflow.client", address)

        def get_run(self, run_id: str) -> None:
            if run_id not in found.runs:
                error = Exception("no such run")
                error.error_code = "RESOURCE_DOES_NOT_EXIST"
                raise error

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            found("mlflow.create_run", (experiment, run_name))
            found.runs.append(f"run{len(found.runs)}")
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=found.runs[-1]))

        def update_run(self, run_id: str, status: str) -> None:
            found("mlflow.update_run", (run_id, status))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(params) <= 100  # MLflow's limit
            found("mlflow.params" if params else "mlflow.metrics", (run_id, [tuple(x) for x in (params or metrics)]))

        def log_text(self, run_id: str, text: str, path: str) -> None:
            found("mlflow.text", (run_id, text, path))

        def set_terminated(self, run_id: str, status: str) -> None:
            found("mlflow.end", (run_id, status))

    wandb = types.ModuleType("wandb")
    wandb.init, wandb.Settings, wandb.Html = init, lambda **told: told, lambda text: text
    mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    mlflow.MlflowClient, entities.Param = Client, lambda key, value: (key, value)
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    for module in (wandb, mlflow, entities):
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_PROJECT", "WANDB_NAME", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return found


BOTH = ("wandb", "mlflow")


def track(workdir: pathlib.Path, steps: range, warnings: list[str], names: tuple[str, ...] = BOTH) -> None:
    found = Trackers(names, workdir, 0, {"seed": 3, "model": {"family": "bert"}}, warnings.append)
    for step in steps:
        found.write(step, {"loss_nats": 1 / step, "eval_loss_nats": 2.0, "note": "no number"})
    found.write_text(steps[-1], "samples", "In the <beginning>")
    found.close()


def test_both_receive_config_numbers_and_texts(tmp_path: pathlib.Path, recorder: Recorder) -> None:
    warnings: list[str] = []
    (tmp_path / "run").mkdir()
    track(tmp_path / "run", range(1, 3), warnings)
    assert warnings == []
    (told,) = recorder.told("wandb.init")
    assert told["config"] == {"seed": 3, "model": {"family": "bert"}} and told["name"] == "run"
    assert recorder.told("wandb.log") == [
        {"step": 1, "train/loss_nats": 1.0, "eval/loss_nats": 2.0},
        {"step": 2, "train/loss_nats": 0.5, "eval/loss_nats": 2.0},
        {"step": 2, "samples": "<pre>In the &lt;beginning&gt;</pre>"},
    ]
    assert recorder.told("mlflow.client") == [f"sqlite:///{tmp_path}/run/mlflow.db"]
    assert recorder.told("mlflow.params") == [("run0", [("seed", "3"), ("model.family", "bert")])]
    assert recorder.told("mlflow.metrics")[1] == ("run0", [("train/loss_nats", 0.5, 2), ("eval/loss_nats", 2.0, 2)])
    assert recorder.told("mlflow.text") == [("run0", "In the <beginning>", "samples/step_00000002.txt")]
    assert recorder.told("wandb.finish") == [0] and recorder.told("mlflow.end") == [("run0", "FINISHED")]


def test_a_resumed_run_continues_its_tracked_runs(tmp_path: pathlib.Path, recorder: Recorder) -> None:
    warnings: list[str] = []
    for first in (1, 5):
        track(tmp_path, range(first, first + 2), warnings)
    first, second = recorder.told("wandb.init")
    ids = json.loads((tmp_path / "trackers.json").read_text())
    assert (
        ids == {"wandb": first["id"], "mlflow": "run0"} and first["id"] == second["id"] and second["resume"] == "allow"
    )
    assert recorder.told("mlflow.update_run") == [("run0", "RUNNING")] and len(recorder.told("mlflow.create_run")) == 1
    recorder.runs.clear()  # another address, which does not have it
    track(tmp_path, range(7, 8), warnings)
    assert len(recorder.told("mlflow.create_run")) == 2 and warnings == []


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_failures_are_reported_once_without_secrets(
    call: str, tmp_path: pathlib.Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    recorder.broken = {f"wandb.{call}"}
    warnings: list[str] = []
    track(tmp_path, range(1, 9), warnings)
    (warning,) = warnings
    assert warning.startswith("tracker wandb ") and "No space left on device" in warning and "metrics.jsonl" in warning
    assert "hunter2" not in warning and "pw123" not in warning
    assert len(recorder.told("mlflow.metrics")) == 8  # the other one receives everything


def test_a_hanging_tracker_costs_a_bounded_time(
    tmp_path: pathlib.Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(threads, "_QUEUE", 5)
    recorder.hung = {"wandb.log"}
    warnings: list[str] = []
    begin = time.monotonic()
    track(tmp_path, range(1, 50), warnings, ("wandb",))
    assert time.monotonic() - begin < 5  # not forever: 0.3 s plus the machine's variation
    (warning,) = warnings
    assert "slower than the run" in warning


def test_a_package_that_cannot_be_imported(tmp_path: pathlib.Path, recorder: Recorder, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python does for `import wandb`: ImportError
    warnings: list[str] = []
    track(tmp_path, range(1, 3), warnings)
    assert len(warnings) == 1 and "could not start (ModuleNotFoundError" in warnings[0]


def test_a_run_with_failing_trackers_equals_the_run_without(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.broken = {"wandb.log", "mlflow.client"}
    assert lab.train(tmp_path, "--config.logging.trackers=wandb,mlflow,tensorboard") == 0
    assert capsys.readouterr().out.count("; the run continues, and metrics.jsonl has every line") == 2
    losses = [[line.get("loss_nats") for line in metrics(run)] for run in (tmp_path, bert_run)]
    assert losses[0] == losses[1] and list((tmp_path / "tensorboard").iterdir())
    assert recorder.told("wandb.finish") == [0]


def test_event_files_on_a_full_disk_are_reported_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboardX import record_writer

    full = open("/dev/full", "wb")  # Linux: no write to it succeeds
    monkeypatch.setattr(record_writer, "open_file", lambda path: full)
    warnings: list[str] = []
    trackers = Trackers(("tensorboard",), tmp_path, 0, {}, warnings.append)
    for step in range(100):
        trackers.write(step, {"loss_nats": 1.0})
    trackers.close()
    assert len(warnings) == 1 and "No space left on device" in warnings[0]
    with contextlib.suppress(OSError):
        full.close()


def test_a_tracker_for_another_package_is_one_class(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(TRACKERS, "_found", dict(TRACKERS._found))

    @TRACKERS.register("notebook")
    class Notebook(Tracker):
        def __init__(self, run: TrackedRun) -> None:
            told.append((run.workdir, run.resume_step, run.config["seed"]))

        def write(self, step: int, values: dict[str, float]) -> None:
            told.append((step, values))

        def write_text(self, step: int, name: str, text: str) -> None:
            told.append((step, name, text))

        def close(self, failed: bool) -> None:
            told.append(failed)

    assert tracker_names(resolve({"logging": {"trackers": "notebook,tensorboard"}})) == ("notebook", "tensorboard")
    check_installed(("notebook",))
    warnings: list[str] = []
    track(tmp_path, range(1, 2), warnings, ("notebook",))
    numbers = {"train/loss_nats": 1.0, "eval/loss_nats": 2.0}
    assert told == [(tmp_path, 0, 3), (1, numbers), (1, "samples", "In the <beginning>"), False] and not warnings


def test_names() -> None:
    def names(text):
        return tracker_names(resolve({"logging": {"trackers": text}}))

    assert names("tensorboard") == ("tensorboard",) and names("none") == ()
    assert names("mlflow, wandb,mlflow") == ("mlflow", "wandb")
    for text, words in (
        ("wandd", "Did you mean 'wandb'?"),
        ("", "for example"),
        ("none,wandb", "combines none with trackers"),
    ):
        with pytest.raises(ConfigError, match="logging.trackers") as caught:
            names(text)
        assert words in str(caught.value)


def test_a_missing_package_is_refused_with_the_command(
    lab: Lab, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TRACKERS.get("mlflow"), "package", "no_such_package_here")
    assert lab.train(tmp_path, "--config.logging.trackers=tensorboard,mlflow") == 2
    error = capsys.readouterr().err
    assert "pip install 'no_such_package_here'" in error and error.count("\n") == 1
    check_installed(("tensorboard",))


def test_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "abcdefgh")
    assert redact("x abcdefgh http://u:p@h/ user@host") == "x *** http://***@h/ user@host"

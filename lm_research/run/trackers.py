"""Trackers: TensorBoard, Weights & Biases and MLflow, beside metrics.jsonl, which needs none of them.

A tracker is a guest. It works on a thread of its own behind a queue that drops rather than waits, what goes wrong in it becomes
one line of the log, and a run that ends waits for it only so long. metrics.jsonl has every line in any case.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import pathlib
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from lm_research.common.disk import write_atomically
from lm_research.common.documents import read_json
from lm_research.config import by_key
from lm_research.errors import ConfigError

IDS = "trackers.json"  # in the run directory: the id of the run at each tracker, so that a resumed run goes on with it
_QUEUE = 10_000  # lines that wait for a slow tracker before further ones are dropped
_CLOSE_SECONDS = 20.0  # what the end of a run waits for its trackers, all together
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

Values = Mapping[str, Any]
Warn = Callable[[str], None]


class Tracker(Protocol):
    """What a tracker can do; it may raise whatever it likes."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of one step, by names such as train/loss_nats."""

    def write_text(self, step: int, name: str, text: str) -> None: ...

    def close(self, failed: bool) -> None: ...


def check_installed(names: Sequence[str]) -> None:
    """Raises a ConfigError with the command to run if the package of a tracker is missing."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"logging.trackers has {name}, but the package {_PACKAGES[name]} is not installed. Install it: "
                f"pip install '{_PACKAGES[name]}' (or pip install -e '.[{name}]'), or leave {name} out."
            )


class Trackers:
    """All trackers of a run; no method raises, or waits longer than `close` says."""

    def __init__(
        self, names: Sequence[str], workdir: pathlib.Path, resume_step: int, config: Mapping[str, Any], warn: Warn
    ) -> None:
        """Args: `config` is shown with the run (nested dicts of plain values), `warn` gets one line a failing tracker."""
        makers: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: TensorBoard(workdir, resume_step),
            "wandb": lambda: WeightsAndBiases(workdir, config),
            "mlflow": lambda: MLflow(workdir, config),
        }
        self._threads = [_Thread(name, makers[name], warn) for name in names]

    def write(self, step: int, values: Values) -> None:
        """The numbers among `values`."""
        numbers = {
            ("eval/" if name.startswith("eval_") else "train/") + name.removeprefix("eval_"): float(value)
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for thread in self._threads:
            thread.put("write", step, numbers)

    def write_text(self, step: int, name: str, text: str) -> None:
        for thread in self._threads:
            thread.put("write_text", step, name, text)

    def close(self, failed: bool = False) -> None:
        """Waits, for a bounded time, until everything has arrived. `failed`: the run ends by an error."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:  # first all, then the wait: they end side by side
            thread.put("close", failed)
        for thread in self._threads:
            thread.finish(max(0.0, deadline - time.monotonic()))


class _Thread(threading.Thread):
    """One tracker, made and called on this thread, in order, until its `close`."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Warn) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)  # a daemon: one that hangs does not keep the process
        self._tracker, self._make, self._warn, self._warned = name, make, warn, False
        self._calls: queue.Queue[tuple[Any, ...]] = queue.Queue(_QUEUE)
        self.start()

    def put(self, *call: Any) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._say(f"is slower than the run: {_QUEUE} lines wait for it, and it misses some")

    def finish(self, seconds: float) -> None:
        self.join(seconds)
        if self.is_alive():
            self._say("had not taken everything as the run ended, and misses the rest")
            self._warned = True  # nothing it does from here on is of interest

    def run(self) -> None:
        try:
            tracker = self._make()
        except BaseException as error:  # libraries raise SystemExit and worse; none of it may end anything here
            return self._fail("could not start", error)
        method = ""
        while method != "close":
            method, *arguments = self._calls.get()
            try:
                getattr(tracker, method)(*arguments)
            except BaseException as error:
                self._fail("missed a line", error)

    def _fail(self, what: str, error: BaseException) -> None:
        self._say(f"{what} ({type(error).__name__}: {redacted(' '.join(str(error).split()))[:300]})")

    def _say(self, what: str) -> None:
        """One line a run, for the first thing that goes wrong."""
        if not self._warned:
            self._warned = True
            with contextlib.suppress(OSError):  # of the log, on a disk that may be full: the run meets it too
                self._warn(f"tracker {self._tracker} {what}; the run goes on, and metrics.jsonl has every line")


def redacted(text: str) -> str:
    """`text` without what looks secret: user:password in addresses, and values of variables named KEY, TOKEN, PASSWORD, SECRET."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text


class TensorBoard:
    """Event files in WORKDIR/tensorboard; later steps than the one a run resumes from are purged.

    Written on this thread: the package's SummaryWriter has one of its own, which dies of a full disk and then blocks who writes to it.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._summary, self._event, self._file = summary, Event, EventsWriter(str(folder / "events"))
        first = resume_step + 1
        self._put(first, {"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)})

    def _put(self, step: int, *contents: dict[str, Any]) -> None:
        for content in contents:
            self._file.write_event(self._event(step=step, wall_time=time.time(), **content))
        self._file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        self._put(step, *({"summary": self._summary.scalar(name, value)} for name, value in values.items()))

    def write_text(self, step: int, name: str, text: str) -> None:
        self._put(step, {"summary": self._summary.text(name, text.replace("\n", "  \n"))})

    def close(self, failed: bool) -> None:
        self._file.close()


class WeightsAndBiases:
    """One run at Weights & Biases, or, with WANDB_MODE=offline, in WORKDIR/wandb for `wandb sync`.

    WANDB_API_KEY (or what `wandb login` wrote), WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME and the rest of its variables hold.
    """

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
        import wandb

        ids = _Ids(workdir)
        # Written before the run is made: whenever the process dies, the next one finds the same run.
        run_id = ids.get("wandb") or ids.put("wandb", secrets.token_hex(8))
        # `console`: the run's output is its own. `login_timeout`: nobody is there to answer a question for a key.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, login_timeout=1, finish_timeout=_CLOSE_SECONDS / 2
        )
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lm_research",
            name=os.environ.get("WANDB_NAME") or workdir.absolute().name,
            id=run_id,
            resume="allow",
            dir=str(workdir),
            config=dict(config),
            settings=settings,
        )
        # Its own counter only rises, and a run that was killed takes some steps again: "step" is a metric like others.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def write_text(self, step: int, name: str, text: str) -> None:
        self._run.log({"step": step, name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """One run at MLFLOW_TRACKING_URI, or in WORKDIR/mlflow.db; MLFLOW_EXPERIMENT_NAME holds."""

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # offline means offline
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # each table it makes would be a line
            logging.getLogger(name).setLevel(logging.WARNING)
        address, folder = os.environ.get("MLFLOW_TRACKING_URI"), workdir.absolute()
        self._client, self._metric, ids = (
            MlflowClient(address or f"sqlite:///{folder / 'mlflow.db'}"),
            Metric,
            _Ids(workdir),
        )
        self._id = ids.get("mlflow")
        if self._id and self._exists(self._id):
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lm_research"
        known = self._client.get_experiment_by_name(experiment)
        place = None if address else (folder / "mlflow").as_uri()
        number = known.experiment_id if known else self._client.create_experiment(experiment, artifact_location=place)
        self._id = ids.put("mlflow", self._client.create_run(number, run_name=folder.name).info.run_id)
        params = [Param(name, str(value)[:500]) for name, value in by_key(config).items()]
        for first in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._id, params=params[first : first + 100])

    def _exists(self, run_id: str) -> bool:
        """Whether the run is known here: another address may have been given since."""
        try:
            self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def write(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[self._metric(name, value, now, step) for name, value in values.items()]
        )

    def write_text(self, step: int, name: str, text: str) -> None:
        self._client.log_text(self._id, text, f"{name}/step_{step:08d}.txt")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class _Ids:
    """WORKDIR/trackers.json: tracker -> id of this run there."""

    _lock = threading.Lock()  # trackers start side by side

    def __init__(self, workdir: pathlib.Path) -> None:
        self._path = workdir / IDS

    def _read(self) -> dict[str, str]:
        return (
            read_json(self._path, dict[str, str], fix="Delete it to begin anew there.") if self._path.exists() else {}
        )

    def get(self, tracker: str) -> str | None:
        with self._lock:
            return self._read().get(tracker)

    def put(self, tracker: str, run_id: str) -> str:
        with self._lock:
            write_atomically(self._path, json.dumps(self._read() | {tracker: run_id}, indent=1) + "\n")
        return run_id

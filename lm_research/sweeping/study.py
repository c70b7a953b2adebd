"""Assignment of trials to workers: an Optuna study that many workers, on many machines, share.

Each trial of the study has a run directory WORKDIR/trials/NUMBER. A worker claims a trial with a lease (its host and process), which
expires with the process, so that another worker, or the same command started again, resumes from the trial's newest checkpoint. The
values of a trial depend only on its number and the seed (for method "tpe", also on earlier trials), not on the worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from lm_research.common.disk import as_disk_error, errno_of, write_atomically
from lm_research.errors import ConfigError, UserError
from lm_research.run.lease import start_time
from lm_research.run.trackers.threads import redact
from lm_research.sweeping.sweep import Choice, Sweep, config_digest

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as missing:
    raise UserError("Sweeps need Optuna: pip install 'lm_research[sweep]' (or pip install optuna).") from missing

# Seconds after which a worker of another host counts as dead unless it renews its lease, which it does six times as often.
PATIENCE = 300.0
_WRITING = threading.Lock()  # for the table: workers are threads of one process, and share its temporary file


class Study:
    """A worker's access to a study. Every worker (thread) makes its own."""

    def __init__(self, sweep: Sweep, workdir: pathlib.Path, storage: str = "") -> None:
        """Open or create the study.

        Args:
          sweep: the sweep to run.
          workdir: directory of the study and its trials.
          storage: URL of Optuna's storage; "" is the file WORKDIR/study.db.

        Raises:
          ConfigError: the storage contains another sweep, or cannot be reached.
        """
        self.sweep, self.workdir = sweep, workdir
        workdir.mkdir(parents=True, exist_ok=True)
        # Directory names may contain characters with a meaning in URLs.
        self.url = storage or f"sqlite:///{urllib.parse.quote(str((workdir / 'study.db').absolute()))}"
        local = self.url.startswith("sqlite")
        file = pathlib.Path(urllib.parse.unquote(self.url.partition(":///")[2]))
        self._lock = pathlib.Path(f"{file}.lock") if local else None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with self._alone():
                settings = {"connect_args": {"timeout": 60}} if local else {}
                made = optuna.storages.RDBStorage(self.url, engine_kwargs=settings) if local else self.url
                self.study = optuna.create_study(
                    storage=made,
                    study_name=workdir.name or "study",
                    direction=sweep.direction,
                    sampler=_Planned(sweep),
                    load_if_exists=True,
                )
                digest = self.study.user_attrs.get("digest")
                if digest is None:
                    self.study.set_user_attr("digest", sweep.digest())
        except Exception as error:  # of many types, depending on the database
            if local and (number := errno_of(error)) is not None:
                refused = OSError(number, os.strerror(number), str(file))
                raise as_disk_error(refused, "Trials that have ended are kept.") or refused from error
            raise ConfigError(
                f"The study's storage {redact(self.url)} cannot be used: {redact(str(error))}."
            ) from error
        if digest not in (None, sweep.digest()):
            raise ConfigError(
                f"{redact(self.url)} contains the study of another sweep (digest {digest}, this one has {sweep.digest()}): the sweep's file "
                "has changed since. Restore it, or choose a new --workdir."
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Exclude other workers while a trial is chosen. Databases other than SQLite lock rows themselves."""
        if self._lock is None:
            yield
            return
        with self._lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def trials(self) -> list[FrozenTrial]:
        """Return all trials of the sweep, by number."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if trial.number < self.sweep.num_trials]

    def claim(self, worker: dict[str, Any]) -> optuna.Trial | None:
        """Return a trial to start or resume, with the worker's lease; None if there is none at the moment (see `finished`)."""
        with self._alone():
            self._settle()
            trials = self.trials()
            for old in trials:
                if self._open(old) and not alive(old.user_attrs.get("lease")):
                    trial = optuna.trial.Trial(self.study, old._trial_id)
                    if self._take(trial, worker):
                        return trial
            while len(trials) < self.sweep.num_trials:
                self.study.sampler = self._sampler(len(trials))
                trial = self.study.ask()
                if trial.number >= self.sweep.num_trials:  # another worker was faster
                    self.study.tell(trial, state=TrialState.FAIL)
                    return None
                if self._take(trial, worker):
                    return trial
                trials = self.trials()
        return None

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        if self.sweep.method != "tpe":
            return _Planned(self.sweep)
        return optuna.samplers.TPESampler(seed=(self.sweep.seed * 1_000_003 + number) % 2**32, multivariate=True)

    def _take(self, trial: optuna.Trial, worker: dict[str, Any]) -> bool:
        """Assign a trial to a worker, and its values if it has none yet; return False if there is nothing to run."""
        self.renew(trial, worker)
        if self._lock is None:  # two workers may have seen the same expired lease: the later one gets the trial
            time.sleep(random.uniform(0.5, 1.5))
            if self._get(trial.number).user_attrs["lease"] != worker:
                return False
        self.study.sampler = self._sampler(trial.number)
        for key, kind in self.sweep.space.items():
            suggest(trial, key, kind)
        if "digest" in trial.user_attrs:
            return True
        try:
            digest = config_digest(self.sweep, trial.params)
        except UserError as error:
            self.fail(trial.number, str(error))
            return False
        twin = next(
            (t for t in self.trials() if t.number < trial.number and t.user_attrs.get("digest") == digest), None
        )
        if twin is not None:
            trial.set_user_attr("same_as", twin.user_attrs.get("same_as", twin.number))
        trial.set_user_attr("digest", digest)  # last, so that a worker that dies in between looks for a twin again
        self._settle()
        return twin is None

    def renew(self, trial: optuna.Trial, worker: dict[str, Any]) -> None:
        """Renew the worker's lease of a trial."""
        worker["time"] = time.time()
        trial.set_user_attr("lease", worker)

    def release(self, trial: optuna.Trial) -> None:
        """Release a trial, so that any worker can claim it."""
        trial.set_user_attr("lease", None)

    def _get(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def _open(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has steps left to run."""
        if trial.state.is_finished() or "same_as" in trial.user_attrs:
            return False
        return len(trial.user_attrs.get("rungs", ())) <= trial.user_attrs.get("promoted", 0)

    def _settle(self) -> None:
        """Update trials from the results so far: copy those of equal trials, and promote or prune."""
        trials = self.trials()
        for trial in trials:
            if trial.state.is_finished():
                continue
            if len(values := trial.user_attrs.get("rungs", ())) >= len(self.sweep.rungs) > 0:
                self.study.tell(trial.number, values[-1])  # its worker died before it could
            if "same_as" not in trial.user_attrs:
                continue
            twin = trials[trial.user_attrs["same_as"]]
            if twin.state == TrialState.COMPLETE:
                self.study.tell(trial.number, twin.value)
            elif twin.state.is_finished():
                if "reason" in twin.user_attrs:
                    self._set(trial, "reason", twin.user_attrs["reason"])
                self.study.tell(trial.number, state=twin.state)
        if not self.sweep.rungs or len(trials) < self.sweep.num_trials:
            return
        for rung in range(len(self.sweep.rungs) - 1):
            reached = [t for t in self.trials() if len(t.user_attrs.get("rungs", ())) > rung]
            pending = [
                t
                for t in self.trials()
                if not t.state.is_finished()
                and len(t.user_attrs.get("rungs", ())) <= rung
                and "same_as" not in t.user_attrs
            ]
            if pending:
                return
            sign = 1 if self.sweep.direction == "minimize" else -1
            order = sorted(reached, key=lambda t: (sign * t.user_attrs["rungs"][rung], t.number))
            for place, trial in enumerate(order):
                if trial.state.is_finished():
                    continue
                if place < math.ceil(len(order) / self.sweep.eta):
                    if trial.user_attrs.get("promoted", 0) <= rung:
                        self._set(trial, "promoted", rung + 1)
                else:
                    self.study.tell(trial.number, state=TrialState.PRUNED)

    def _set(self, trial: FrozenTrial, name: str, value: Any) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def goal(self, trial: optuna.Trial) -> int:
        """Return the step to run a trial to; 0 is its end."""
        done = len(trial.user_attrs.get("rungs", ()))
        return self.sweep.rungs[done] if done + 1 < len(self.sweep.rungs) else 0

    def reached(self, trial: optuna.Trial, value: float) -> None:
        """Store the value of the metric of a trial that has reached its goal."""
        with self._alone():
            rungs = [*trial.user_attrs.get("rungs", ()), value]
            if self.sweep.rungs:
                trial.report(value, self.sweep.rungs[len(rungs) - 1])
                trial.set_user_attr("rungs", rungs)
            if len(rungs) >= len(self.sweep.rungs):
                self.study.tell(trial.number, value)
            else:
                self.release(trial)
            self._settle()

    def prune(self, number: int) -> None:
        """Mark a trial as pruned."""
        with self._alone():
            self.study.tell(number, state=TrialState.PRUNED)
            self._settle()

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed; the reason is shown in the table."""
        self._set(self._get(number), "reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def finished(self) -> bool:
        """Return whether all trials have ended."""
        trials = self.trials()
        return len(trials) == self.sweep.num_trials and all(trial.state.is_finished() for trial in trials)

    def all_failed(self) -> str:
        """Return the reason why the first trial failed if all did, else ""."""
        trials = self.trials()
        if not trials or any(trial.state != TrialState.FAIL for trial in trials):
            return ""
        return trials[0].user_attrs.get("reason", "unknown reason")

    def table(self) -> dict[str, Any]:
        """Return the study as data: settings, and values and result of each trial."""
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        rows = []
        for trial in self.trials():
            seen = trial.user_attrs
            rows.append(
                {
                    "number": trial.number,
                    "params": dict(trial.params),
                    "value": trial.value if trial.state == TrialState.COMPLETE else (seen.get("rungs") or [None])[-1],
                    "state": names.get(trial.state, "running"),
                    "run": f"trials/{seen.get('same_as', trial.number):04d}",
                    "reason": seen.get(
                        "reason", f"the same run as trial {seen['same_as']}" if "same_as" in seen else ""
                    ),
                }
            )
        return {
            "metric": self.sweep.metric,
            "direction": self.sweep.direction,
            "digest": self.sweep.digest(),
            "rungs": list(self.sweep.rungs),
            "trials": rows,
        }


class _Planned(optuna.samplers.BaseSampler):
    """Sampler that returns the values that a grid or a random sweep has planned for a trial's number."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    @override
    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    @override
    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    @override
    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        return self.sweep.planned(trial.number)[name]


def suggest(trial: optuna.Trial, key: str, kind: Any) -> Any:
    """Return the trial's value for a key, sampled by the study's sampler if it has none."""
    if isinstance(kind, Choice):
        return trial.suggest_categorical(key, kind.values)
    if kind.integer:
        return trial.suggest_int(key, int(kind.low), int(kind.high), log=kind.log)
    return trial.suggest_float(key, kind.low, kind.high, log=kind.log)


def this_worker(child: int = 0) -> dict[str, Any]:
    """Return a lease of this process and its training process `child`: their host, process ids and start times."""
    processes = {str(pid): start for pid in (os.getpid(), child) if pid and (start := start_time(pid))}
    return {"host": socket.gethostname(), "processes": processes, "time": time.time()}


def alive(lease: dict[str, Any] | None) -> bool:
    """Return whether the holder of a lease may still be running."""
    if not lease:
        return False
    if lease["host"] != socket.gethostname():
        return time.time() - lease["time"] < PATIENCE
    return any(start_time(int(pid)) == start for pid, start in lease["processes"].items())


def write_table(study: Study) -> str:
    """Write WORKDIR/study.json and table.md, and return the table."""
    table = study.table()
    keys = list(study.sweep.space)
    sign = 1 if table["direction"] == "minimize" else -1
    rows = sorted(
        table["trials"],
        key=lambda row: (
            row["state"] != "complete",
            math.inf if row["value"] is None else sign * row["value"],
            row["number"],
        ),
    )
    lines = [f"| trial | {' | '.join(keys)} | {table['metric']} | state |", "|---" * (len(keys) + 3) + "|"]
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:.6g}"
        params = " | ".join(str(row["params"].get(key, "")) for key in keys)
        why = f": {row['reason']}" if row["reason"] else ""
        lines.append(f"| {row['number']} | {params} | {value} | {row['state']}{why} |")
    text = "\n".join(lines) + "\n"
    with _WRITING:
        write_atomically(study.workdir / "table.md", text)
        write_atomically(study.workdir / "study.json", json.dumps(table, indent=1) + "\n")
    return text

"""Who runs which trial: an Optuna study that many workers, on many machines, share.

A trial of the study is a run directory WORKDIR/trials/NUMBER. A worker takes one by a lease (its host and process), which lapses
with the process, so that another, or the same command started again, goes on from the trial's newest checkpoint. What a
trial is depends on its number and the seed alone (on the trials before it too where a model chooses), not on who takes it.
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

from lm_research.common.disk import as_disk_error, errno_of, write_atomically
from lm_research.errors import ConfigError, UserError
from lm_research.run.trackers.threads import redact
from lm_research.sweeping.sweep import Choice, Sweep, config_digest

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as missing:
    raise UserError("Sweeps need Optuna: pip install 'lm_research[sweep]' (or pip install optuna).") from missing

# Seconds without a sign of life after which a worker of another host counts as dead; it gives one six times as often.
PATIENCE = 300.0
_WRITING = threading.Lock()  # the table: workers are threads of one process, which has one temporary name for it


class Study:
    """One study, as one worker sees it. Every worker (thread) makes its own."""

    def __init__(self, sweep: Sweep, workdir: pathlib.Path, storage: str = "") -> None:
        """`storage`: of Optuna, as a URL; "" is the file WORKDIR/study.db.

        Raises:
          ConfigError: the storage holds another sweep, or cannot be reached.
        """
        self.sweep, self.workdir = sweep, workdir
        workdir.mkdir(parents=True, exist_ok=True)
        # The name of a directory may have signs that mean something in an address.
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
                known = self.study.user_attrs.get("digest")
                if known is None:
                    self.study.set_user_attr("digest", sweep.digest())
        except Exception as error:  # of many kinds, by database
            if local and (number := errno_of(error)) is not None:
                refused = OSError(number, os.strerror(number), str(file))
                raise as_disk_error(refused, "Trials that have ended are kept.") or refused from error
            raise ConfigError(
                f"The study's storage {redact(self.url)} cannot be used: {redact(str(error))}."
            ) from error
        if known not in (None, sweep.digest()):
            raise ConfigError(
                f"{redact(self.url)} holds the study of another sweep (digest {known}, this one has {sweep.digest()}): the sweep's file "
                "has changed since. Restore it, or choose a new --workdir."
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else chooses meanwhile. Other databases than SQLite lock rows themselves."""
        if self._lock is None:
            yield
            return
        with self._lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def trials(self) -> list[FrozenTrial]:
        """All trials of the sweep, by number."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if trial.number < self.sweep.num_trials]

    def claim(self, worker: dict[str, Any]) -> optuna.Trial | None:
        """A trial to run or go on with, now under the worker's lease; None if there is none at the moment (see `finished`)."""
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
                if trial.number >= self.sweep.num_trials:  # another worker was quicker
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
        """Gives a trial its values, if it has none yet, and the worker its lease; False if there is nothing to run."""
        self.renew(trial, worker)
        if self._lock is None:  # two workers may have seen the same lapsed lease: the later one has it
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
        trial.set_user_attr("digest", digest)  # after it: whoever dies in between asks for a twin again
        self._settle()
        return twin is None

    def renew(self, trial: optuna.Trial, worker: dict[str, Any]) -> None:
        """Says that the worker lives."""
        worker["time"] = time.time()
        trial.set_user_attr("lease", worker)

    def release(self, trial: optuna.Trial) -> None:
        """Leaves a trial to whoever comes next."""
        trial.set_user_attr("lease", None)

    def _get(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def _open(self, trial: FrozenTrial) -> bool:
        """Whether it is to be run from where it is."""
        if trial.state.is_finished() or "same_as" in trial.user_attrs:
            return False
        return len(trial.user_attrs.get("rungs", ())) <= trial.user_attrs.get("promoted", 0)

    def _settle(self) -> None:
        """What follows from what is known: results of equal trials, and who is promoted."""
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
            there = [t for t in self.trials() if len(t.user_attrs.get("rungs", ())) > rung]
            coming = [
                t
                for t in self.trials()
                if not t.state.is_finished()
                and len(t.user_attrs.get("rungs", ())) <= rung
                and "same_as" not in t.user_attrs
            ]
            if coming:
                return
            sign = 1 if self.sweep.direction == "minimize" else -1
            order = sorted(there, key=lambda t: (sign * t.user_attrs["rungs"][rung], t.number))
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
        """The step a trial is to be run to; 0 is its end."""
        done = len(trial.user_attrs.get("rungs", ()))
        return self.sweep.rungs[done] if done + 1 < len(self.sweep.rungs) else 0

    def reached(self, trial: optuna.Trial, value: float) -> None:
        """A trial has got to its goal with this value of the metric."""
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
        with self._alone():
            self.study.tell(number, state=TrialState.PRUNED)
            self._settle()

    def fail(self, number: int, reason: str) -> None:
        """A trial that cannot be run; the reason is shown in the table."""
        self._set(self._get(number), "reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def finished(self) -> bool:
        """Whether nothing is left, nor being done."""
        trials = self.trials()
        return len(trials) == self.sweep.num_trials and all(trial.state.is_finished() for trial in trials)

    def all_failed(self) -> str:
        """Why the first trial failed, if all did; "" otherwise."""
        trials = self.trials()
        if not trials or any(trial.state != TrialState.FAIL for trial in trials):
            return ""
        return trials[0].user_attrs.get("reason", "no reason is known")

    def table(self) -> dict[str, Any]:
        """The study as data: what each trial was and what came out."""
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
    """Tells Optuna the values that a grid or a random sweep has planned for a trial's number."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        return self.sweep.planned(trial.number)[name]


def suggest(trial: optuna.Trial, key: str, kind: Any) -> Any:
    """The trial's value for a key: what it has, or what the study's sampler says."""
    if isinstance(kind, Choice):
        return trial.suggest_categorical(key, kind.values)
    if kind.integer:
        return trial.suggest_int(key, int(kind.low), int(kind.high), log=kind.log)
    return trial.suggest_float(key, kind.low, kind.high, log=kind.log)


def this_worker(child: int = 0) -> dict[str, Any]:
    """What a lease says about who holds it; `child`: the process that trains."""
    processes = {str(pid): born for pid in (os.getpid(), child) if pid and (born := _born(pid))}
    return {"host": socket.gethostname(), "processes": processes, "time": time.time()}


def alive(lease: dict[str, Any] | None) -> bool:
    """Whether the holder of a lease may still be at work."""
    if not lease:
        return False
    if lease["host"] != socket.gethostname():
        return time.time() - lease["time"] < PATIENCE
    return any(_born(int(pid)) == born for pid, born in lease["processes"].items())


def _born(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; "" if it is none, or has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def write_table(study: Study) -> str:
    """Writes WORKDIR/study.json and table.md; returns the table."""
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

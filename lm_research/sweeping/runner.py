"""Runner of trials on this machine: one training process per worker, until the study is finished."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lm_research.common import disk
from lm_research.common.documents import is_finite
from lm_research.common.paths import is_remote
from lm_research.config import loading, run_files
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, USER_ERROR, CheckpointError
from lm_research.run import run_directory
from lm_research.run.metrics_log import read_metrics
from lm_research.sweeping.study import PATIENCE, Study, this_worker, write_table
from lm_research.sweeping.sweep import Sweep

# A process that dies without an error (out of memory, pre-empted) is restarted, up to this many deaths at one step.
DEATHS = 3
_POLL = 0.2
_POLL_BUCKET = 5.0  # between two looks at the metrics of a run in a bucket
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Stopped(Exception):
    """The whole sweep has to stop; running trials have saved."""


class Workers:
    """Threads that run trials of one study in parallel.

    Attributes:
      stop: event that ends them; each running trial saves first.
    """

    def __init__(
        self,
        sweep: Sweep,
        workdir: pathlib.Path,
        storage: str,
        log: Callable[[str], None],
        environment: Mapping[str, str],
        launch: Callable[[list[str], int], list[str]] | None = None,
        cache: pathlib.Path | None = None,
        address: pathlib.Path | None = None,
    ) -> None:
        """Prepare the workers.

        Args:
          sweep: the sweep to run.
          workdir: see Study.
          storage: see Study.
          log: function that logs a line.
          environment: environment variables of a trial's process; "{worker}" in a value is the worker's number.
          launch: function from the arguments of training and the worker's number to a command that runs them elsewhere, waits, and
            returns their exit code; None runs them on this machine.
          cache: directory of corpora and tokenizers, which studies may share; None is WORKDIR/cache.
          address: the directory in a bucket that `workdir` is copied to, where the trials' runs are.
        """
        self.sweep, self.workdir, self.storage, self.log = sweep, workdir, storage, log
        self.runs = address or workdir
        self.environment, self.stop = environment, threading.Event()
        self.launch = launch or (lambda arguments, _: [sys.executable, "-m", sweep.module, *arguments])
        own_cache = loading.load(sweep.config).data.cache_dir or "data.cache_dir" in sweep.values({})
        # All trials share corpora and tokenizers, so that each is built only once.
        self.shared = [] if own_cache else [f"--config.data.cache_dir={cache or self.runs / 'cache'}"]
        self._errors: list[BaseException] = []

    def run(self, count: int) -> bool:
        """Run until the study is finished (True) or `stop` is set (False)."""
        threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL)  # instead of join, so that signals are handled
        if self._errors:
            raise self._errors[0]
        return not self.stop.is_set()

    def _work(self, number: int) -> None:
        try:
            study = Study(self.sweep, self.workdir, self.storage)
            while not self.stop.is_set():
                trial = study.claim(this_worker())
                if trial is not None:
                    self._trial(study, trial, number)
                    write_table(study)
                elif study.finished():
                    return
                else:
                    self.stop.wait(1.0)
        except Stopped:
            return
        except BaseException as error:  # raised by `run` in the main thread
            self._errors.append(error)
            self.stop.set()

    def _trial(self, study: Study, trial: Any, worker: int) -> None:
        """Run a trial from its current step to its goal, and store the result in the study."""
        number, goal = trial.number, study.goal(trial)
        where = self.runs / "trials" / f"{number:04d}"
        output = self.workdir / "trials" / f"{number:04d}.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        self._until_free(study, trial, where)
        params = ", ".join(f"{key}={value}" for key, value in trial.params.items())
        self.log(f"trial {number}: {params}" + (f", to step {goal}" if goal else ""))
        arguments = [*self.sweep.flags(trial.params), *self.shared, f"--workdir={where}"]
        if self.sweep.rungs:
            arguments.append(f"--config.train.stop_after={goal}")
        extra = {name: value.replace("{worker}", str(worker)) for name, value in self.environment.items()}
        with output.open("a") as file:
            process = subprocess.Popen(
                self.launch(arguments, worker),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **extra},
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
                start_new_session=True,  # Ctrl-C goes only to the driver, which signals each trial once: a second signal would kill it
            )
            try:
                code = self._watch(study, trial, process, where)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if code is None:
            self.log(f"trial {number}: pruned at step {_steps(where)[-1]}")
            study.prune(number)
        elif code == DONE:
            value, reason = _value(where, self.sweep.metric)
            if value is None:
                study.fail(number, reason)
                self.log(f"trial {number}: failed: {reason}")
            else:
                study.reached(trial, value)
                self.log(f"trial {number}: {self.sweep.metric} {value:.6g}" + (f" at step {goal}" if goal else ""))
        elif code == STOPPED_BY_SIGNAL or code < 0:
            self._again(study, trial, code, where)
        elif _in_use(where):  # by a queued job that has started
            study.release(trial)
        else:
            reason = _last_words(output) or f"exit code {code}"
            if code == USER_ERROR and _refused(reason, self.workdir):
                study.release(trial)  # the trial itself is fine
                raise disk.DiskError(
                    f"Trial {number} cannot continue, nor can other trials: {reason} Finished trials are kept."
                )
            study.fail(number, reason)
            self.log(f"trial {number}: failed: {reason}")

    def _until_free(self, study: Study, trial: Any, where: pathlib.Path) -> None:
        """Wait while a process that outlived its driver, such as a Slurm job, still runs the trial."""
        logged = False
        while _in_use(where):
            if not logged:
                self.log(f"trial {trial.number}: waiting for another process that uses {where}")
                logged = True
            study.renew(trial, this_worker())
            if self.stop.wait(5.0):
                study.release(trial)
                raise Stopped

    def _watch(self, study: Study, trial: Any, process: subprocess.Popen[bytes], where: pathlib.Path) -> int | None:
        """Wait for a trial's process; return its exit code, or None if the trial was pruned."""
        lease = this_worker(process.pid)
        study.renew(trial, lease)
        beat, looked, seen, weak, signaled = time.monotonic(), 0.0, 0, False, False
        while process.poll() is None:
            time.sleep(_POLL)
            if self.stop.is_set() and not signaled:
                process.send_signal(signal.SIGTERM)
                signaled = True
            if time.monotonic() - beat > PATIENCE / 6:
                study.renew(trial, lease)
                beat = time.monotonic()
            if self.sweep.prune and not weak and (not is_remote(where) or time.monotonic() - looked > _POLL_BUCKET):
                looked = time.monotonic()
                for step, value in _evaluations(where, self.sweep.metric)[seen:]:
                    seen += 1
                    trial.report(value, step)
                    weak = weak or _weaker(study, trial.number, step, value)
                if weak:
                    process.send_signal(signal.SIGTERM)
        return None if weak and process.returncode != DONE else process.returncode

    def _again(self, study: Study, trial: Any, code: int, where: pathlib.Path) -> None:
        """Release a trial whose process was ended from outside, so that a worker resumes it, or fail it after DEATHS deaths."""
        if self.stop.is_set():
            study.release(trial)
            raise Stopped
        step = _steps(where)[-1]
        deaths, before = trial.user_attrs.get("deaths", (0, 0))
        deaths = deaths + 1 if step <= before else 1
        trial.set_user_attr("deaths", (deaths, max(step, before)))
        how = f"signal {-code}" if code < 0 else "a signal, after saving"
        if deaths >= DEATHS:
            study.fail(trial.number, f"ended by {how} {deaths} times after step {step}; see {where}.txt")
        else:
            study.release(trial)
        self.log(f"trial {trial.number}: ended by {how}" + (", will resume" if deaths < DEATHS else ", given up"))


def _die_with_parent(driver: int) -> None:
    """Make a training process save and end if its driver is killed, so that the next driver can use its directory."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != driver:  # the driver was killed before the call
        os._exit(STOPPED_BY_SIGNAL)


def _refused(reason: str, workdir: pathlib.Path) -> bool:
    """Return whether a trial ended because it could not write; on a full disk its error message may be missing."""
    return disk.errno_of(RuntimeError(reason)) is not None or shutil.disk_usage(workdir).free < 2**16


def _in_use(where: pathlib.Path) -> bool:
    """Return whether a process has locked the run's directory."""
    if not (where / ".lock").exists():
        return False
    try:
        run_directory.lock(where).close()
    except CheckpointError:
        return True
    return False


def _steps(where: pathlib.Path) -> list[int]:
    return [line["step"] for line in read_metrics(where / "metrics.jsonl")] or [0]


def _evaluations(where: pathlib.Path, metric: str) -> list[tuple[int, float]]:
    return [
        (line["step"], line[metric])
        for line in read_metrics(where / "metrics.jsonl")
        if type(line.get(metric)) in (int, float)
    ]


def _weaker(study: Study, number: int, step: int, value: float) -> bool:
    """Return whether a value is worse than the median of at least four other trials at that step."""
    others = sorted(
        trial.intermediate_values[step]
        for trial in study.trials()
        if trial.number != number and step in trial.intermediate_values
    )
    if len(others) < 4:
        return False
    middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
    return value > middle if study.sweep.direction == "minimize" else value < middle


def _value(where: pathlib.Path, metric: str) -> tuple[float | None, str]:
    """Return the metric of a run's summary, or None and the reason."""
    try:
        summary = run_files.read_summary(where)
    except CheckpointError as error:
        return None, str(error)
    values = {**summary.get("train", {}), **summary.get("eval", {})}
    value = values.get(metric)
    if is_finite(value):
        return float(value), ""
    if metric in values:
        return None, f"its {metric} is {value}"
    return None, f"the run has no metric {metric!r}; it has {', '.join(sorted(values))}"


def _last_words(output: pathlib.Path) -> str:
    lines = [line for line in output.read_bytes()[-65536:].decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return errors[-1].removeprefix("error: ").strip() if errors else ""

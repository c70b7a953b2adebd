"""One training run from top to bottom: directory, corpus, model, state, restore, loop, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from lm_research import config as config_lib
from lm_research.common.paths import as_path
from lm_research.config import Config
from lm_research.data.loader import load
from lm_research.data.sampler import BatchBuilder, LengthGroupedSampler
from lm_research.parallel.batches import local_rows
from lm_research.parallel.rules import batch_shards, replicated
from lm_research.run import extension, run_directory
from lm_research.run.budget import StepBudget
from lm_research.run.callbacks import Callback
from lm_research.run.evaluator import Evaluator
from lm_research.run.goodput import RunHistory, TimeAccount, describe_times, process_start_time
from lm_research.run.learner import Learner
from lm_research.run.loop import Loop
from lm_research.run.meter import Meter
from lm_research.run.metrics_log import MetricsWriter, find_gaps, read_metrics
from lm_research.run.pace import Pace
from lm_research.run.profiler import Profiler
from lm_research.run.progress import Progress
from lm_research.run.recheck import Recheck
from lm_research.run.setup import RunSetup, prepare
from lm_research.run.summary import export_best_model, final_message, summarize
from lm_research.run.time_budget import make_budget

Status = Literal["finished", "paused", "stopped"]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
      workdir: the run directory.
      status: finished; paused (train.stop_after); or stopped by a signal, in which case the same call resumes it.
      summary: the content of summary.json: step, last metrics of training and evaluation, digests, seconds; for a task also the scores of
        its best model.
    """

    workdir: pathlib.Path
    status: Status
    summary: dict[str, Any]


def fit(config: Config, workdir: pathlib.Path, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Start a run in a directory, or resume the one that is there; return when it has ended and all is saved.

    Args:
      config: checked, see config.resolve.
      workdir: the run directory, a path or a gs:// or s3:// address, which no other process may use meanwhile, see `run_directory.lock`.
      callbacks: called after the run's own.

    Raises:
      UserError: the config is impossible, or does not fit the run in this directory.
      NonFiniteLoss, DeviceFault: see run/failures.py and run/recheck.py.
    """
    began, workdir = process_start_time(), as_path(workdir)
    with contextlib.ExitStack() as ends:
        run = prepare(config, workdir, ends)
        learner = Learner(run, ends)
        start = learner.begin()
        record_start(run, learner, start)
        writer, lines, counted = open_metrics(run, learner, start)
        evaluator = Evaluator(run, writer, lines)
        account = TimeAccount(began)
        history = open_history(run, account, start)
        meter = Meter(run.config, run.objective, run.definition, run.examples, start, run.log, account, counted)
        feed = make_feed(run)
        budget = make_budget(run.config, run.files, start, account, history, replicated(run.mesh), run.log)
        if budget.needs_calibration:
            calibrate(budget, learner, feed, start, account, evaluator.num_batches)

        batches = load(feed, start, budget.last, run.config.data.num_workers)
        progress, pace = Progress(start, budget.end, run.log, run.is_main), Pace(start)
        recheck = make_recheck(run, learner, start, account)
        profiler = Profiler(config_lib.profile_range(run.config), run.files)
        hooks = [pace, recheck, profiler, writer, progress, history, *callbacks]
        pause_step = run.config.train.stop_after or budget.last
        if start < min(budget.end, pause_step):  # compile while a signal still ends the run at once
            learner.prepare(feed(start), budget.device_args, account)
        loop = Loop(run, learner, budget, evaluator, meter, writer, progress, account, feed, pace, hooks, pause_step)
        loop(start, batches)
        history.write(learner.step)
        return conclude(loop, history)


def record_start(run: RunSetup, learner: Learner, start: int) -> None:
    """Record this start in the run directory: the config, the environment, and what has changed.

    Raises:
      CheckpointError: the run has already passed the configured end.
    """
    if run.verification.background:
        learner.checkpoints.trust(start)
    extension.check(run.workdir, run.config, start)
    if run.is_main:
        changed = run_directory.store_config(run.workdir, run.config, run.files)
        run_directory.record_environment(run.files, run.definition.num_params, changed, run.compiler_options)
        if message := extension.describe_changes(run.config, changed, start):
            run.log(message)


def open_metrics(
    run: RunSetup, learner: Learner, start: int
) -> tuple[MetricsWriter, list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Open metrics.jsonl: its writer, its lines so far, and those from which the token count continues (None if the last are lost)."""
    config = run.config
    trackers, values = config_lib.tracker_names(config), config_lib.to_dict(config)
    writer = MetricsWriter(run.files, trackers, start, run.is_main, values, run.log)
    lines = [line for line in read_metrics(run.files / "metrics.jsonl") if line["step"] <= start]
    gaps = find_gaps(lines, start, config.logging.every_steps, learner.checkpoints.lines(start) if start else None)
    if gaps:
        run.log(gaps)
    lost = gaps and start - max((line["step"] for line in lines), default=0) >= config.logging.every_steps
    return writer, lines, None if lost else lines


def open_history(run: RunSetup, account: TimeAccount, start: int) -> RunHistory:
    """Open the account of all starts of the run."""
    history = RunHistory(run.files, account, start, run.is_main)
    if start and not history.exists:
        run.log("WARNING: time.json is missing or damaged: the time of the steps up to here is not counted.")
    return history


def make_feed(run: RunSetup) -> BatchBuilder:
    """Make the batches of a run; each process makes its own rows of them."""
    config, mesh, examples = run.config, run.mesh, run.examples
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    groups = LengthGroupedSampler(examples, size, config.seed) if config.data.group_by_length else None
    rows, vocabulary = local_rows(mesh, size // accumulation), run.definition.arch.vocab_size
    return BatchBuilder(
        examples,
        size,
        accumulation,
        rows,
        config.seed,
        groups,
        batch_shards(mesh.shape),
        vocabulary,
        run.corpus.train.path,
    )


def calibrate(
    budget: StepBudget, learner: Learner, feed: BatchBuilder, start: int, account: TimeAccount, eval_batches: int
) -> None:
    """Set a budget's end from timed steps on a state that is thrown away."""
    rehearsal = load(feed, start, budget.last)

    def take() -> Any:
        _, program = learner.prepare(next(rehearsal), budget.device_args, account)
        learner.state = program(learner.state)
        return learner.state["step"]

    budget.calibrate(take, eval_batches)
    rehearsal.close()
    learner.begin()


def make_recheck(run: RunSetup, learner: Learner, start: int, account: TimeAccount) -> Recheck:
    """Make the callback that repeats steps to find silent data corruption."""
    parts = (run.config, run.objective, run.definition, run.mesh, run.files)
    return Recheck(*parts, learner.checkpoints, start, account, run.log)


def conclude(loop: Loop, history: RunHistory) -> FitResult:
    """Finish a run whose loop has ended: write summary.json and a task's best model, and log the final message."""
    run, learner, evaluator = loop.run, loop.learner, loop.evaluator
    seconds = history.total() if run.is_main else None  # process 0 writes it
    done = learner.step == loop.budget.end or evaluator.exhausted
    status: Status = "finished" if done else "paused" if learner.step >= loop.pause_step else "stopped"
    summary = summarize(learner.state, run.files, status, evaluator.unigram_nats, seconds)
    if seconds is not None:
        run.log(f"time: {describe_times(seconds)}")
    task_scores = ""
    if done and run.trainable.delivers_best:
        learner.take_best()
        scores, task_scores = export_best_model(evaluator, learner.state, run.init, run.files)
        summary |= scores
    learner.checkpoints.close()
    run.log(final_message(run.config, run.workdir, summary, task_scores) if run.is_main else summary["status"])
    return FitResult(run.workdir, status, summary)

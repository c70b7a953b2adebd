"""One training run, top to bottom: directory, corpus, model, state, restore, loop, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from lm_research import config as config_lib
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
from lm_research.run.summary import deliver, final_message, summarize
from lm_research.run.time_budget import make_budget

Status = Literal["finished", "paused", "stopped"]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
      workdir: the run directory.
      status: finished; paused (train.stop_after); or stopped by a signal: the same call goes on from there.
      summary: what summary.json says: step, last metrics of training and evaluation, digests, seconds; of a task the scores of its best
        model.
    """

    workdir: pathlib.Path
    status: Status
    summary: dict[str, Any]


def fit(config: Config, workdir: pathlib.Path, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Starts a run in a directory, or goes on with the one that is there; returns when it has ended and all is saved.

    Args:
      config: checked, see config.resolve.
      workdir: which no other process may use meanwhile, see `run_directory.lock`.
      callbacks: called after the run's own.

    Raises:
      UserError: the config cannot be, or not with this directory.
      NonFiniteLoss, DeviceFault: see run/failures.py and run/recheck.py.
    """
    began = process_start_time()
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
        budget = make_budget(run.config, workdir, start, account, history, replicated(run.mesh), run.log)
        if budget.needs_calibration:
            calibrate(budget, learner, feed, start, account, evaluator.num_batches)

        batches = load(feed, start, budget.last, run.config.data.num_workers)
        progress, pace = Progress(start, budget.end, run.log, run.is_main), Pace(start)
        recheck = make_recheck(run, learner, start, account)
        profiler = Profiler(config_lib.profile_range(run.config), workdir)
        hooks = [pace, recheck, profiler, writer, progress, history, *callbacks]
        pause_step = run.config.train.stop_after or budget.last
        if start < min(budget.end, pause_step):  # compiled while a signal still ends the run at once
            learner.prepare(feed(start), budget.device_args, account)
        loop = Loop(run, learner, budget, evaluator, meter, writer, progress, account, feed, pace, hooks, pause_step)
        loop(start, batches)
        history.write(learner.step)
        return conclude(loop, history)


def record_start(run: RunSetup, learner: Learner, start: int) -> None:
    """What the run directory keeps of this start; from here on it has the run's config.

    Raises:
      CheckpointError: the run has gone further than it is asked to.
    """
    if run.verification.background:
        learner.checkpoints.trust(start)
    extension.check(run.workdir, run.config, start)
    if run.is_main:
        changed = run_directory.store_config(run.workdir, run.config)
        run_directory.record_environment(run.workdir, run.definition.num_params, changed)
        if words := extension.describe_changes(run.config, changed, start):
            run.log(words)


def open_metrics(
    run: RunSetup, learner: Learner, start: int
) -> tuple[MetricsWriter, list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The writer of metrics.jsonl, its lines so far, and those whose count of tokens goes on (None where the last of them are lost)."""
    config = run.config
    trackers, shown = config_lib.tracker_names(config), config_lib.to_dict(config)
    writer = MetricsWriter(run.workdir, trackers, start, run.is_main, shown, run.log)
    lines = [line for line in read_metrics(run.workdir / "metrics.jsonl") if line["step"] <= start]
    gaps = find_gaps(lines, start, config.logging.every_steps, learner.checkpoints.lines(start) if start else None)
    if gaps:
        run.log(gaps)
    lost = gaps and start - max((line["step"] for line in lines), default=0) >= config.logging.every_steps
    return writer, lines, None if lost else lines


def open_history(run: RunSetup, account: TimeAccount, start: int) -> RunHistory:
    """The account of all starts of the run."""
    history = RunHistory(run.workdir, account, start, run.is_main)
    if start and not history.known:
        run.log("WARNING: time.json is missing or damaged: the time of the steps up to here counts for nothing.")
    return history


def make_feed(run: RunSetup) -> BatchBuilder:
    """The batches of a run, of which this process makes its rows."""
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
    """Sets a budget's end by steps that do not count, on a state that is thrown away."""
    rehearsal = load(feed, start, budget.last)

    def take() -> Any:
        _, program = learner.prepare(next(rehearsal), budget.device_args, account)
        learner.state = program(learner.state)
        return learner.state["step"]

    budget.calibrate(take, eval_batches)
    rehearsal.close()
    learner.begin()


def make_recheck(run: RunSetup, learner: Learner, start: int, account: TimeAccount) -> Recheck:
    parts = (run.config, run.objective, run.definition, run.mesh, run.workdir)
    return Recheck(*parts, learner.checkpoints, start, account, run.log)


def conclude(loop: Loop, history: RunHistory) -> FitResult:
    """What is left of a run whose loop has ended: summary.json, a task's best model, and the last words."""
    run, learner, evaluator = loop.run, loop.learner, loop.evaluator
    seconds = history.total() if run.is_main else None  # process 0 writes it
    done = learner.step == loop.budget.end or evaluator.exhausted
    status: Status = "finished" if done else "paused" if learner.step >= loop.pause_step else "stopped"
    summary = summarize(learner.state, run.workdir, status, evaluator.unigram_nats, seconds)
    if seconds is not None:
        run.log(f"time: {describe_times(seconds)}")
    words = ""
    if done and run.trainable.delivers_best:
        learner.take_best()
        scores, words = deliver(evaluator, learner.state, run.init, run.workdir)
        summary |= scores
    learner.checkpoints.close()
    run.log(final_message(run.config, run.workdir, summary, words) if run.is_main else summary["status"])
    return FitResult(run.workdir, status, summary)

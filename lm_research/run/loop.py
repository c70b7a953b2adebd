"""The training loop.

Its order is fixed: evaluate, save, stop or continue, next batch, step, write metrics. So a saved state always matches the batch that
follows it and the lines of metrics before it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Generator, Sequence

import jax
import numpy as np

from lm_research.common import interrupts
from lm_research.data.sampler import BatchBuilder
from lm_research.parallel import exchange, processes
from lm_research.run.budget import StepBudget
from lm_research.run.callbacks import Callback, StepCall, every
from lm_research.run.evaluator import Evaluator
from lm_research.run.failures import raise_if_damaged, raise_if_halted
from lm_research.run.goodput import TimeAccount
from lm_research.run.learner import Learner
from lm_research.run.meter import Meter
from lm_research.run.metrics_log import MetricsWriter
from lm_research.run.pace import Pace
from lm_research.run.progress import Progress
from lm_research.run.setup import RunSetup
from lm_research.run.signals import StopRequest

Batches = Generator[dict[str, np.ndarray], None, None]


@dataclasses.dataclass
class Loop:
    """The loop over the steps of a run.

    Attributes:
      run: the parts of the run.
      learner: owns the state.
      budget: decides where the run ends.
      evaluator, meter, writer, progress, account: measure, and write the results.
      feed: batches by number.
      pace: limits how far the host runs ahead.
      callbacks: called in this order; they include pace, writer and progress.
      pause_step: the step at which the run pauses (train.stop_after), unless it ends before.
    """

    run: RunSetup
    learner: Learner
    budget: StepBudget
    evaluator: Evaluator
    meter: Meter
    writer: MetricsWriter
    progress: Progress
    account: TimeAccount
    feed: BatchBuilder
    pace: Pace
    callbacks: Sequence[Callback]
    pause_step: int

    def __call__(self, start: int, batches: Batches) -> None:
        """Run from a step until the end, a pause, exhausted patience or a signal; then save.

        Raises:
          NonFiniteLoss, DataError, DeviceFault: see failures.py and recheck.py.
        """
        saved_at = time.monotonic()
        with self.writer, StopRequest() as stop_request:
            for step in itertools.count(start):
                self.progress.reach(self.pace.wait())
                is_new = step > start or start == 0  # a restored step was evaluated before it was saved
                at_end = step >= min(self.budget.end, self.pause_step)
                scores = self._evaluate(step) if is_new and (at_end or self.evaluator.due(step)) else None
                finished = at_end or self.evaluator.exhausted
                if finished:
                    self.run.verification.wait()
                processes.watch_step()
                stopping = stop_request.should_stop(
                    step
                )  # called once per step, so that the run never stops without saving
                due = every(self.run.config.checkpoint.every_steps, step) or finished or stopping
                self._check_text(step, due)
                if is_new and (due or self._overdue(step, saved_at)):
                    self._save(step, scores)
                    saved_at = time.monotonic()
                elif is_new and every(self.run.config.checkpoint.local_every_steps, step):
                    self._save_locally()
                if finished or stopping:
                    break
                self._take_step(step + 1, batches)
                if every(self.run.config.logging.every_steps, step + 1):
                    self._write_line(step + 1)
                if self.budget.update(step + 1, self.learner.state):
                    self.progress.retarget(self.budget.end)
            self._end(batches)

    def _evaluate(self, step: int) -> dict[str, float]:
        self._check_finite()  # waits for dispatched steps, whose time must not count as evaluation
        with self.account.paused("eval"):
            scores = self.evaluator.run(step, self.learner.state)
        for callback in self.callbacks:
            callback.on_evaluate(step, scores)
        return scores

    def _check_text(self, step: int, due: bool) -> None:
        """Check for damaged text before each save, and from time to time."""
        verification = self.run.verification
        if verification.background and (due or every(self.run.config.logging.every_steps, step)):
            raise_if_damaged(verification, self.learner.checkpoints)

    def _overdue(self, step: int, since: float) -> bool:
        """Check whether a save is due by process 0's clock; several processes only check at steps where they synchronize anyway."""
        minutes = self.run.config.checkpoint.every_minutes
        if not minutes or (jax.process_count() > 1 and not every(self.run.config.logging.every_steps, step)):
            return False
        return exchange.broadcast_flag(time.monotonic() - since > 60 * minutes)

    def _save(self, step: int, scores: dict[str, float] | None) -> None:
        self._check_finite()
        rank = self.evaluator.rank(scores)
        with self.account.paused("checkpoint"):
            self.learner.checkpoints.save(self.learner.state, scores, rank, self.writer.lines)
        for callback in self.callbacks:
            callback.on_save(step)

    def _save_locally(self) -> None:
        self._check_finite()
        with self.account.paused("checkpoint"):
            self.learner.checkpoints.save_local(self.learner.state, self.writer.lines)

    def _take_step(self, number: int, batches: Batches) -> None:
        learner = self.learner
        with self.account.waiting(idle=learner.state["step"].is_ready()):
            rows = next(batches)
        batch, program = learner.prepare(rows, self.budget.device_args, self.account)
        call = StepCall(number, learner.state, batch, program)
        for callback in self.callbacks:
            callback.on_step_begin(call)
        learner.state = call.program(call.state)
        for callback in reversed(self.callbacks):
            callback.on_step_end(number, learner.state)

    def _write_line(self, step: int) -> None:
        self._check_finite()
        self.run.copy.check()

        def rate(number: int) -> jax.Array:
            return self.learner.schedule(number, *self.budget.schedule_args)

        values = self.meter.line(step, self.learner.state, rate)
        self.learner.clear_window()
        for callback in self.callbacks:
            callback.on_log(step, values)

    def _check_finite(self) -> None:
        raise_if_halted(self.learner.state, self.feed, self.run.files, self.learner.checkpoints)

    def _end(self, batches: Batches) -> None:
        step = self.learner.step
        for callback in self.callbacks:
            callback.on_train_end(step)
        batches.close()
        with self.account.paused("checkpoint"):
            self.learner.checkpoints.wait()
        interrupts.set_message("after its last step, with all of them saved")

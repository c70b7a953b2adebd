"""Traces of steps, for TensorBoard or Perfetto."""

from __future__ import annotations

import pathlib

import jax
from typing_extensions import override

from lm_research.run.callbacks import Callback, StepCall
from lm_research.training.state import State


class Profiler(Callback):
    """Traces a range of steps with jax.profiler into WORKDIR/profile."""

    def __init__(self, steps: tuple[int, int] | None, workdir: pathlib.Path) -> None:
        self._first, self._last = steps or (0, -1)
        self._path = str(workdir / "profile")
        self._running = False

    @override
    def on_step_begin(self, call: StepCall) -> None:
        if self._first <= call.number <= self._last and not self._running:  # a run may resume inside the range
            jax.profiler.start_trace(self._path)
            self._running = True

    def on_step_end(self, step: int, state: State) -> None:
        """End the trace once the state after the last traced step is computed."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def on_train_end(self, step: int) -> None:
        """End the trace if the run ends within the range."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False

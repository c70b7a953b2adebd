"""Callbacks, called at fixed points of the training loop.

The points have the names that Keras and Hugging Face use. A run has its own callbacks (the profiler, the progress bar, the metrics
file, ...); `fit` takes more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lm_research.objectives.base import Batch
from lm_research.training.state import State


def every(steps: int | None, step: int) -> bool:
    """Check whether something that is due every `steps` steps is due after this step; None means never."""
    return steps is not None and steps > 0 and step > 0 and step % steps == 0


@dataclasses.dataclass
class StepCall:
    """A step that is about to run.

    Attributes:
      number: counted from 1.
      state: the state before the step. A callback that calls `program` donates it, and must replace it by an equal one.
      batch: its rows on the devices, [A, B, ...].
      program: the compiled step: state -> state.
    """

    number: int
    state: State
    batch: Batch
    program: Callable[[State], State]


class Callback:
    """A callback that does nothing; subclasses override what they need. Every process calls all callbacks in the same order."""

    def on_step_begin(self, call: StepCall) -> None:
        """Handle the start of a step."""

    def on_step_end(self, step: int, state: State) -> None:
        """Handle a dispatched step, which the devices may still be computing. Called in reverse order, as contexts end.

        The next step overwrites `state`: copy what you keep.
        """

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        """Handle a line of training metrics."""

    def on_evaluate(self, step: int, scores: Mapping[str, float]) -> None:
        """Handle the metrics of an evaluation."""

    def on_save(self, step: int) -> None:
        """Handle the start of writing a checkpoint."""

    def on_train_end(self, step: int) -> None:
        """Handle the end of the loop, after this step."""

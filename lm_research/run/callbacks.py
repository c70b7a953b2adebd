"""What is called at fixed points of the loop.

The names of the points are those of Keras and Hugging Face. A run has its own callbacks (the profiler, the progress bar, the metrics
file, ...); `fit` takes more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lm_research.objectives.base import Batch
from lm_research.training.state import State


def every(steps: int | None, step: int) -> bool:
    """Whether something that is due every `steps` steps is due after this one; None is never."""
    return steps is not None and steps > 0 and step > 0 and step % steps == 0


@dataclasses.dataclass
class StepCall:
    """A step that is about to be taken.

    Attributes:
      number: counted from 1.
      state: before the step. A callback that uses it up (the program overwrites what it is given) puts an equal one in its place.
      batch: its rows on the devices, [A, B, ...].
      program: the compiled step: state -> state.
    """

    number: int
    state: State
    batch: Batch
    program: Callable[[State], State]


class Callback:
    """Does nothing at any point of the loop; subclasses override what they need. Every process calls all of them, in the same order."""

    def on_step_begin(self, call: StepCall) -> None:
        """Before a step."""

    def on_step_end(self, step: int, state: State) -> None:
        """A step was handed to the devices, which may still be busy with it; called in reverse order, as contexts end.

        `state` belongs to the next step, which overwrites it: copy what is to be kept.
        """

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        """A line of training metrics."""

    def on_evaluate(self, step: int, scores: Mapping[str, float]) -> None:
        """The metrics of an evaluation."""

    def on_save(self, step: int) -> None:
        """A checkpoint is being written."""

    def on_train_end(self, step: int) -> None:
        """The loop has ended after this step."""

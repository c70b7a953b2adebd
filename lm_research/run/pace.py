"""A limit on how far the host runs ahead of the device.

JAX dispatches a step and returns at once, so the host could dispatch many steps before the device computes them. Dispatched steps
cannot be cancelled, so a signal would take effect late, and the progress bar would be ahead of the device. Two dispatched steps keep
the device busy while the host makes the next batch.
"""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
from typing_extensions import override

from lm_research.run.callbacks import Callback
from lm_research.training.state import State

MAX_DISPATCHED = 2  # steps

_copy = jax.jit(jnp.copy)


class Pace(Callback):
    """Limits the number of dispatched steps to MAX_DISPATCHED.

    Attributes:
      finished: the last step that has certainly finished.
    """

    def __init__(self, start: int) -> None:
        """Begin at `start`, the step that the run resumes from."""
        self.finished = start
        self._dispatched: collections.deque[tuple[int, jax.Array]] = collections.deque()

    @override
    def on_step_end(self, step: int, state: State) -> None:
        self._dispatched.append((step, _copy(state["step"])))  # a copy: the next step overwrites its state

    def wait(self) -> int:
        """Wait until another step may be dispatched; return `finished`."""
        while len(self._dispatched) >= MAX_DISPATCHED:
            self.finished, mark = self._dispatched.popleft()
            jax.block_until_ready(mark)
        return self.finished

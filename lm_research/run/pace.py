"""How far the host runs ahead of the device.

JAX dispatches a step and returns at once, so the host could hand out many steps that the device has yet to take. None of them
can be called back: a signal, or a reader of the progress bar, would speak of steps long before they are taken. Two under way
keep the device busy while the host makes the next batch.
"""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
from typing_extensions import override

from lm_research.run.callbacks import Callback
from lm_research.training.state import State

AHEAD = 2  # steps under way at most

_copy = jax.jit(jnp.copy)


class Pace(Callback):
    """Lets at most AHEAD steps be under way.

    Attributes:
      finished: the last step that is known to be done.
    """

    def __init__(self, start: int) -> None:
        """`start`: the step that the run goes on from."""
        self.finished = start
        self._under_way: collections.deque[tuple[int, jax.Array]] = collections.deque()

    @override
    def on_step_end(self, step: int, state: State) -> None:
        self._under_way.append((step, _copy(state["step"])))  # a copy: the next step overwrites its state

    def wait(self) -> int:
        """Returns once there is room for another step under way: `finished`."""
        while len(self._under_way) >= AHEAD:
            self.finished, mark = self._under_way.popleft()
            jax.block_until_ready(mark)
        return self.finished

"""Copies of a state: what a checkpoint is written from while the next steps overwrite the state, and what a run owns of what was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax

from lm_research.models.digest import finish_digests, join_digests, start_digests
from lm_research.parallel import exchange
from lm_research.training.state import State, copy_arrays, copy_into

Digests = Callable[[], dict[str, str] | None]


class Snapshot:
    """The state that is being written, where the writer would otherwise read memory that the next step overwrites.

    On GPUs and TPUs, Orbax copies the arrays to the host before it returns, and the digests are computed on the devices, queued before the
    next step. On a CPU, Orbax reads the arrays in place. So they are copied here, into memory that is kept from the first save, or from
    `reserve` (memory that is new has to be cleared by the system first), and the writer computes the digests from the copy.
    """

    def __init__(self) -> None:
        self._kept: State | None = None
        self._count = 0  # of the snapshots taken: all processes take the same ones

    def reserve(self, state: State) -> None:
        """Get the memory of the snapshots, and compile the program that fills it: otherwise the first save waits for both."""
        if jax.default_backend() == "cpu" and self._kept is None:
            self._kept = copy_into(copy_arrays(state), state)

    def take(self, state: State) -> tuple[State, Digests]:
        """Take a snapshot, into the memory of the last one, which nothing may be reading any more.

        Returns:
          What Orbax can save while the state is overwritten, and a function for the writer, of every process, that waits for the digests
          and returns them in process 0.
        """
        self._count += 1
        name = f"digests/{self._count}"
        if jax.default_backend() != "cpu":
            words = start_digests(state)
            return state, lambda: _join(name, words)
        kept = copy_arrays(state) if self._kept is None else copy_into(self._kept, state)
        self._kept = jax.block_until_ready(kept)
        return self._kept, lambda: _join(name, start_digests(kept))

    def free(self) -> None:
        """Free the memory of the last snapshot."""
        self._kept = None


def _join(name: str, words: Any) -> dict[str, str] | None:
    texts = exchange.collect_texts(name, json.dumps(finish_digests(words)))
    return None if texts is None else join_digests(map(json.loads, texts))


def own_arrays(state: Any) -> Any:
    """Copy arrays that a reader returned into memory of their own, one at a time, each of which is freed at once.

    The reader may own the memory of its arrays and reuse it, but a step overwrites the memory of its state. `state` is emptied.
    """
    for name, value in state.items():
        state[name] = None
        state[name] = own_arrays(value) if isinstance(value, dict) else jax.block_until_ready(copy_arrays(value))
        del value
    return state

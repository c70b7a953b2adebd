"""Which examples a step reads: a pure function of (seed, step), for any number of processes.

Legend: A accumulation steps, B rows of one micro-batch on this process.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from lm_research.data.random import permute


class Examples(Protocol):
    """Examples addressed by number; an objective's host side, or several of them mixed (mixture.py)."""

    num_examples: int

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Rows for the given examples of the given epochs. An index of -1 asks for an empty row of weight 0."""
        ...


def train_examples(step: int, batch_size: int, num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and example number of each row of the global batch of `step`.

    The epochs follow one another without a gap: a batch may end one and begin the next, so no example is left out.
    """
    position_B = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epoch_B, place_B = position_B // num_examples, position_B % num_examples
    return epoch_B, permute(place_B, num_examples, seed, "order", epoch_B)


def eval_examples(batch: int, batch_size: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples in order, once; rows past the last are -1 (empty). Always epoch 0, so masks never change."""
    index_B = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int64)
    return np.zeros_like(index_B), np.where(index_B < num_examples, index_B, -1)


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches by number, for `loader.load`: this process's rows of the global batch.

    Attributes:
      examples: where the rows come from.
      batch_size: global batch size.
      accumulation_steps: A; above 0 arrays are [A, B, ...], at 0 they are [B, ...].
      rows: which rows of each micro-batch belong to this process.
      seed: of the order; None reads in order, once (evaluation).
    """

    examples: Examples
    batch_size: int
    accumulation_steps: int
    rows: slice
    seed: int | None

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """The batch of step `number` (with a seed) or evaluation batch `number` (without)."""
        if self.seed is None:
            epoch_B, index_B = eval_examples(number, self.batch_size, self.examples.num_examples)
        else:
            epoch_B, index_B = self._train_examples(number, self.seed)
        micro = (max(1, self.accumulation_steps), -1)
        epoch_AB, index_AB = (x.reshape(micro)[:, self.rows] for x in (epoch_B, index_B))
        width = getattr(
            self.examples, "width", None
        )  # of rows whose length goes with the batch: the same on all processes
        given = {"width": width(index_B)} if width else {}
        batch = self.examples.batch(epoch_AB.reshape(-1), index_AB.reshape(-1), **given)
        if not self.accumulation_steps:
            return batch
        return {name: rows.reshape(*index_AB.shape, *rows.shape[1:]) for name, rows in batch.items()}

    def _train_examples(self, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        locate = getattr(self.examples, "locate", None)  # a mixture deals its rows out itself
        if locate is None:
            return train_examples(step, self.batch_size, self.examples.num_examples, seed)
        return locate(np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64), seed)

"""Which examples a step reads: a pure function of (seed, step), for any number of processes.

Legend: A accumulation steps, B rows of one micro-batch on this process.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.data.stateless_rng import permute
from lm_research.data.store import damaged
from lm_research.errors import ConfigError

POOL_STEPS = 50  # batches that are sorted by length together
_IDS = ("tokens_", "source_tokens_")  # how names of arrays with ids begin


class Examples(abc.ABC):
    """Examples addressed by number; an objective's host side, or several of them mixed (mixture.py).

    Attributes:
      num_examples: how many there are.
      notes: how full rows are, in words.
    """

    num_examples: int
    notes: str = ""

    @abc.abstractmethod
    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Rows for the given examples of the given epochs. An index of -1 asks for an empty row of weight 0."""

    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        """The same of a part of a global batch, all of whose examples are `index_G`: rows may be as long as the longest of these needs."""
        return self.batch(epoch_B, index_B)

    def example_lengths(self) -> np.ndarray | None:
        """What examples are grouped by, [N]; None where all rows are equally long."""
        return None

    def locate(self, row_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example number of rows of a run, by their own numbers.

        The epochs follow one another without a gap: a batch may end one and begin the next, so no example is left out.
        """
        epoch_B, place_B = row_B // self.num_examples, row_B % self.num_examples
        return epoch_B, permute(place_B, self.num_examples, seed, "order", epoch_B)


class SharedRowExamples(Examples):
    """Examples of which those of a batch share rows, each for itself."""

    @abc.abstractmethod
    def arrange(self, index_AB: np.ndarray, ways: int) -> np.ndarray:
        """The examples of each row of the micro-batches of a global batch, [A, R, K]; -1 where there is none. R is a multiple of `ways`."""

    @abc.abstractmethod
    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of the examples that `arrange` has put into each."""


class LengthGroupedSampler:
    """The rows of `Examples.locate` in batches of about equal length, by step.

    An epoch is cut into pools of about `pool_steps` steps. A pool's rows are sorted by length and cut into batches, which are shuffled. Pools
    end where epochs do (at the first step from there on), so whole epochs read every example as often as without groups.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, pool_steps: int = POOL_STEPS) -> None:
        """Raises a ConfigError if all rows are equally long."""
        lengths_N = examples.example_lengths()
        if lengths_N is None:
            raise ConfigError(
                "config.data.group_by_length is for records of a labeled task (config.task.name) in rows of their own: rows of text, and packed "
                "rows, are all equally long. Leave it out, or set --config.data.packing=False."
            )
        self.examples, self.lengths_N, self.batch_size, self.seed = examples, lengths_N, batch_size, seed
        self.pools = max(1, round(len(lengths_N) / (batch_size * pool_steps)))  # of an epoch
        # The pool that was asked for last: it is shuffled once, not at each of its steps.
        self.latest: tuple[int, int, np.ndarray, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example number of each row of the global batch of `step`."""
        pool = step * self.batch_size * self.pools // len(self.lengths_N)
        latest = self.latest
        if latest is None or latest[0] != pool:
            self.latest = latest = self._make(pool)
        _, first, epoch_PB, index_PB = latest
        return epoch_PB[step - first], index_PB[step - first]

    def _make(self, pool: int) -> tuple[int, int, np.ndarray, np.ndarray]:
        """A pool's number and first step, and epochs and examples of its batches."""
        size, every = len(self.lengths_N), self.batch_size * self.pools
        first, end = (ceil_div(number * size, every) for number in (pool, pool + 1))
        row_R = np.arange(first * self.batch_size, end * self.batch_size, dtype=np.int64)
        epoch_R, index_R = self.examples.locate(row_R, self.seed)
        order_PB = np.argsort(self.lengths_N[index_R], kind="stable").reshape(-1, self.batch_size)
        order_PB = order_PB[permute(np.arange(end - first), end - first, self.seed, "batches", np.array([pool]))]
        return pool, first, epoch_R[order_PB], index_R[order_PB]


def eval_examples(batch: int, batch_size: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples in order, once; rows past the last are -1 (empty). Always epoch 0, so masks never change."""
    index_B = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int64)
    return np.zeros_like(index_B), np.where(index_B < num_examples, index_B, -1)


@dataclasses.dataclass(frozen=True)
class BatchBuilder:
    """Batches by number, for `loader.load`: this process's rows of the global batch.

    Attributes:
      examples: where the rows come from.
      batch_size: global batch size.
      accumulation_steps: A; above 0 arrays are [A, B, ...], at 0 they are [B, ...].
      rows: which rows of each micro-batch belong to this process.
      seed: of the order; None reads in order, once (evaluation).
      groups: gives batches of about equal length; None shuffles all.
      ways: of how many the number of rows must be a multiple, where the examples of a batch share rows.
      vocabulary: rows of the model's table of tokens, which a device would not miss: ids that it lacks are an error. 0 takes all.
      store: where the tokens come from, for its message.
    """

    examples: Examples
    batch_size: int
    accumulation_steps: int
    rows: slice
    seed: int | None
    groups: LengthGroupedSampler | None = None
    ways: int = 1
    vocabulary: int = 0
    store: pathlib.Path = pathlib.Path()

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """The batch of step `number` (with a seed) or evaluation batch `number` (without).

        Raises:
          DamagedStore: it has an id that the model has no row for.
        """
        batch = self._make(number)
        for name, ids in batch.items() if self.vocabulary else ():
            if name.startswith(_IDS) and ids.size and int(ids.max()) >= self.vocabulary:
                raise damaged(
                    self.store,
                    f"tokens.bin gives id {int(ids.max())} to a batch, and the model knows {self.vocabulary} of them",
                )
        return batch

    def _make(self, number: int) -> dict[str, np.ndarray]:
        if self.seed is None:
            epoch_B, index_B = eval_examples(number, self.batch_size, self.examples.num_examples)
        else:
            epoch_B, index_B = self._train_examples(number, self.seed)
        micro = (max(1, self.accumulation_steps), -1)
        if isinstance(self.examples, SharedRowExamples):
            index_ARK = self.examples.arrange(index_B.reshape(micro), self.ways)
            return self._shared(self.examples, index_ARK, index_B.size // micro[0])
        epoch_AB, index_AB = (x.reshape(micro)[:, self.rows] for x in (epoch_B, index_B))
        batch = self.examples.part_of_batch(epoch_AB.reshape(-1), index_AB.reshape(-1), index_B)
        if not self.accumulation_steps:
            return batch
        return {name: rows.reshape(*index_AB.shape, *rows.shape[1:]) for name, rows in batch.items()}

    def _shared(self, examples: SharedRowExamples, index_ARK: np.ndarray, micro_size: int) -> dict[str, np.ndarray]:
        """This process's rows of a global batch whose examples share rows: the share that it has of the examples."""
        rows, (start, stop, _) = index_ARK.shape[1], self.rows.indices(micro_size)
        index_ARK = index_ARK[:, start * rows // micro_size : stop * rows // micro_size]
        batch = examples.shared(index_ARK.reshape(-1, index_ARK.shape[2]))
        if not self.accumulation_steps:
            return batch
        return {name: x.reshape(*index_ARK.shape[:2], *x.shape[1:]) for name, x in batch.items()}

    def _train_examples(self, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if self.groups is not None:
            return self.groups(step)
        return self.examples.locate(
            np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64), seed
        )

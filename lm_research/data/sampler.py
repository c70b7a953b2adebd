"""Sampler: which examples a step reads, as a pure function of (seed, step), for any number of processes.

Legend: A accumulation steps, B rows of one micro-batch on this process.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import pathlib

import numpy as np

from lm_research.common.rounding import ceil_div, few_sizes, padded_length
from lm_research.data.stateless_rng import permute
from lm_research.data.store import damaged
from lm_research.errors import ConfigError

POOL_STEPS = 50  # batches that are sorted by length together
_COMPILE_BATCHES = 8  # evaluation batches that take as long as compiling a program for others, roughly
_IDS = ("tokens_", "source_tokens_")  # prefixes of arrays with ids


class Examples(abc.ABC):
    """Examples addressed by number: the host side of an objective, or a mixture of several (mixture.py).

    Attributes:
      num_examples: number of examples.
      notes: a description of how full rows are, for the log.
    """

    num_examples: int
    notes: str = ""

    @abc.abstractmethod
    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make the rows of the given examples in the given epochs. An index of -1 gives an empty row of weight 0."""

    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        """Make a part of a global batch. The rows' length may depend on `index_G`, the examples of the whole global batch."""
        return self.batch(epoch_B, index_B)

    def example_lengths(self) -> np.ndarray | None:
        """Return the lengths that examples are grouped by, [N]; None if all rows are equally long."""
        return None

    def locate(self, row_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the epoch and example of a run's rows by their numbers.

        Epochs follow one another without a gap. A batch may end one epoch and begin the next, so no example is left out.
        """
        epoch_B, place_B = row_B // self.num_examples, row_B % self.num_examples
        return epoch_B, permute(place_B, self.num_examples, seed, "order", epoch_B)


class SharedRowExamples(Examples):
    """Examples that share rows with others of their batch, without attending to each other."""

    @abc.abstractmethod
    def arrange(self, index_AB: np.ndarray, row_multiple: int) -> np.ndarray:
        """Arrange the examples of each micro-batch in rows, [A, R, K] with -1 for empty slots. R is a multiple of `row_multiple`."""

    @abc.abstractmethod
    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """Make the rows of the examples that `arrange` has put into each."""


class LengthGroupedSampler:
    """Groups the rows of `Examples.locate` into batches of similar length.

    An epoch is divided into pools of about `pool_steps` steps. A pool's rows are sorted by length and cut into batches, which are shuffled.
    The last pool of an epoch ends at the first step after the epoch, so whole epochs read every example as often as without grouping.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, pool_steps: int = POOL_STEPS) -> None:
        """Read the lengths of examples; raises a ConfigError if all rows are equally long."""
        lengths_N = examples.example_lengths()
        if lengths_N is None:
            raise ConfigError(
                "config.data.group_by_length requires a labeled task (config.task.name) with one record per row: rows of text, and packed "
                "rows, are all equally long. Remove it, or set --config.data.packing=False."
            )
        self.examples, self.lengths_N, self.batch_size, self.seed = examples, lengths_N, batch_size, seed
        self.pools = max(1, round(len(lengths_N) / (batch_size * pool_steps)))  # per epoch
        # The most recent pool, so that it is sorted and shuffled once and not at each of its steps.
        self._latest: tuple[int, int, np.ndarray, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the epoch and example of each row of the global batch of `step`."""
        pool = step * self.batch_size * self.pools // len(self.lengths_N)
        latest = self._latest
        if latest is None or latest[0] != pool:
            self._latest = latest = self._make_pool(pool)
        _, first, epoch_PB, index_PB = latest
        return epoch_PB[step - first], index_PB[step - first]

    def _make_pool(self, pool: int) -> tuple[int, int, np.ndarray, np.ndarray]:
        """Build a pool: its number, its first step, and the epochs and examples of its batches [P, B]."""
        size, divisor = len(self.lengths_N), self.batch_size * self.pools
        first, end = (ceil_div(number * size, divisor) for number in (pool, pool + 1))
        row_R = np.arange(first * self.batch_size, end * self.batch_size, dtype=np.int64)
        epoch_R, index_R = self.examples.locate(row_R, self.seed)
        order_PB = np.argsort(self.lengths_N[index_R], kind="stable").reshape(-1, self.batch_size)
        order_PB = order_PB[permute(np.arange(end - first), end - first, self.seed, "batches", np.array([pool]))]
        return pool, first, epoch_R[order_PB], index_R[order_PB]


def eval_examples(batch: int, batch_size: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and examples of an evaluation batch: examples in order, then -1 (empty rows). The epoch is 0, so masks never change."""
    index_B = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int64)
    return np.zeros_like(index_B), np.where(index_B < num_examples, index_B, -1)


@dataclasses.dataclass(frozen=True)
class BatchBuilder:
    """Makes this process's rows of global batches by number, for `loader.load`.

    Attributes:
      examples: the examples of the rows.
      batch_size: global batch size.
      accumulation_steps: A; above 0 arrays are [A, B, ...], at 0 they are [B, ...].
      rows: rows of each micro-batch that belong to this process.
      seed: seed of the order; None reads in order, once (evaluation).
      groups: chooses batches of similar length; None shuffles all examples.
      row_multiple: the number of rows is a multiple of this if the examples of a batch share rows.
      vocab_size: rows of the model's embedding table; a higher id is an error, which devices would not detect. 0 disables the check.
      store: folder of the tokens, for error messages.
    """

    examples: Examples
    batch_size: int
    accumulation_steps: int
    rows: slice
    seed: int | None
    groups: LengthGroupedSampler | None = None
    row_multiple: int = 1
    vocab_size: int = 0
    store: pathlib.Path = pathlib.Path()

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Make the batch of step `number` (with a seed) or evaluation batch `number` (without).

        Raises:
          DamagedStore: the batch has an id outside of the model's vocabulary.
        """
        batch = self._make(number)
        for name, ids in batch.items() if self.vocab_size else ():
            if name.startswith(_IDS) and ids.size and int(ids.max()) >= self.vocab_size:
                raise damaged(
                    self.store,
                    f"tokens.bin has id {int(ids.max())} in a batch, but the model has {self.vocab_size} ids",
                )
        return batch

    def _make(self, number: int) -> dict[str, np.ndarray]:
        if self.seed is None:
            epoch_B, index_B = eval_examples(number, self.batch_size, self.examples.num_examples)
            alike = self._alike[number] if number < len(self._alike) else index_B
        else:
            epoch_B, index_B = self._train_examples(number, self.seed)
            alike = index_B
        micro = (max(1, self.accumulation_steps), -1)
        if isinstance(self.examples, SharedRowExamples):
            index_ARK = self.examples.arrange(index_B.reshape(micro), self.row_multiple)
            return self._shared(self.examples, index_ARK, index_B.size // micro[0])
        epoch_AB, index_AB = (x.reshape(micro)[:, self.rows] for x in (epoch_B, index_B))
        batch = self.examples.part_of_batch(epoch_AB.reshape(-1), index_AB.reshape(-1), alike)
        if not self.accumulation_steps:
            return batch
        return {name: rows.reshape(*index_AB.shape, *rows.shape[1:]) for name, rows in batch.items()}

    @functools.cached_property
    def _alike(self) -> list[np.ndarray]:
        """The examples by which the rows of each evaluation batch are as long as those of others, so that one or two programs serve all.

        Empty if rows are equally long anyway.
        """
        lengths_N = self.examples.example_lengths()
        if lengths_N is None:
            return []
        longest_S = np.maximum.reduceat(lengths_N, np.arange(0, len(lengths_N), self.batch_size))
        size_S = np.array([padded_length(int(longest)) for longest in longest_S])
        group_S = np.searchsorted(few_sizes(size_S, _COMPILE_BATCHES), size_S)
        group_N = np.repeat(group_S, self.batch_size)[: len(lengths_N)]
        return [np.flatnonzero(group_N == group) for group in group_S]

    def _shared(self, examples: SharedRowExamples, index_ARK: np.ndarray, micro_size: int) -> dict[str, np.ndarray]:
        """Make this process's rows of a global batch whose examples share rows, in proportion to its number of examples."""
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

"""Make batches ahead of the steps that need them, with Grain."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Generator

import numpy as np

Batch = dict[str, np.ndarray]
_THREADS = 2  # enough to hide a batch behind a step; more contend for the interpreter


_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close open iterators at exit, while the modules that Grain needs for it are still loaded."""
    for batches in list(_open):
        batches.close()


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """`make_batch` called with plain ints instead of Grain's integer type."""

    make_batch: Callable[[int], Batch]

    def __call__(self, step: int) -> Batch:
        return self.make_batch(int(step))


@dataclasses.dataclass(frozen=True)
class _Pickled:
    """`make_batch` with its result as bytes, for worker processes.

    Grain passes arrays through shared memory and frees it on a separate thread. Batches that were made but never
    read leak, and at exit that thread may end first, with a traceback. Bytes go through a pipe and leave nothing behind.
    Batches of 2 MiB took 12 ms this way and 11 ms through shared memory (medians of 9, alternating, 2 busy cores).
    """

    make_batch: Callable[[int], Batch]

    def __call__(self, step: int) -> bytes:
        _end_with_parent()
        return pickle.dumps(self.make_batch(int(step)), protocol=pickle.HIGHEST_PROTOCOL)


@functools.cache
def _end_with_parent() -> None:
    """End this worker process when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)


def load(
    make_batch: Callable[[int], Batch], start: int, stop: int, num_workers: int = 0, prefetch: int = 4
) -> Generator[Batch, None, None]:
    """Iterate over the batches of steps start, ..., stop - 1 in order, making them ahead of time.

    Nothing is replayed, so starting at step 1,000,000 costs the same as starting at 0. The batches do not depend on
    num_workers or prefetch. An exception in make_batch is raised when the consumer reaches that batch. Close the iterator, or
    drop it, to stop early.

    Args:
      make_batch: makes the batch of a step; a pure function, and picklable if num_workers > 0.
      start: first step.
      stop: end of the steps, not included.
      num_workers: worker processes; 0 uses two threads of this process.
      prefetch: number of batches to make ahead, per worker process if there are any.
    """
    batches = _batches(make_batch, start, stop, num_workers, prefetch)
    _open.add(batches)
    return batches


def _batches(
    make_batch: Callable[[int], Batch], start: int, stop: int, num_workers: int, prefetch: int
) -> Generator[Batch, None, None]:
    if start >= stop:
        return
    import grain  # imports jax, which the rest of data/ does not

    make = _Pickled(make_batch) if num_workers else _Numbered(make_batch)
    steps = grain.MapDataset.range(start, stop).map(make)
    threads = grain.ReadOptions(num_threads=1 if num_workers else _THREADS, prefetch_buffer_size=prefetch)
    dataset = steps.to_iter_dataset(threads)
    if num_workers:
        _mark_flags_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
        dataset = dataset.mp_prefetch(options)
    iterator = iter(dataset)
    try:
        yield from map(pickle.loads, iterator) if num_workers else iterator
    finally:
        iterator.close()


def _mark_flags_parsed() -> None:
    """Mark absl's flags as parsed, without which Grain's worker processes do not start outside of absl's app.run."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

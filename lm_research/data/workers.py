"""Runners: apply a function to many items in worker processes, with results in order. See also beam.py."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from lm_research.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 3  # items in flight per worker: enough to keep all busy, few enough to fit in memory


class Runner(Protocol):
    """Runs the parallel steps of preparing a corpus.

    Attributes:
      by_file: whether each file of a source is read by a separate task; otherwise the caller reads all files.
    """

    by_file: bool

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        """Call `function`, which writes its output to disk, with each item, and `advance` with each result."""
        ...


class Processes:
    """Worker processes on this machine."""

    by_file = False

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        """Run tasks in order of the items; see Runner."""
        for result in map_in_order(function, items, self._workers):
            advance(result)


class WorkerDied(DataError):
    """A worker process was killed. Finished tasks are kept, and the same command resumes from there."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) for each item, in order; the results do not depend on `workers`.

    Args:
      function: picklable if workers > 1; its exceptions are passed on.
      items: read a few ahead of the results.
      workers: number of processes; 1 calls the function in this one.

    Raises:
      WorkerDied: a worker process was killed.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, because a fork of a process with threads (JAX's, a tokenizer's) may hang.
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start)
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    items = iter(items)
    try:
        while True:
            for item in itertools.islice(items, _AHEAD * workers - len(pending)):
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            f"One of {workers} worker processes was killed, perhaps because memory ran out. Run the same command again, with "
            "fewer --workers if it recurs; finished tasks are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Initialize a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizers library: the processes use all cores
    # A worker waits on a pipe whose other end it also holds open, so it would outlive a parent that is killed.
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""A function over many items in several processes, results in order; and what else may run such work (beam.py)."""

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
_AHEAD = 3  # items under way for each worker: enough to keep all busy, few enough to be held in memory


class Runner(Protocol):
    """Where the parallel steps of preparing a corpus run.

    Attributes:
      by_file: whether each file of a source is read by a task of its own, rather than all of them here.
    """

    by_file: bool

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        """Calls `function`, which writes what it makes to disk, with each item, and `advance` with each result."""
        ...


class Processes:
    """Worker processes of this machine."""

    by_file = False

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        for result in map_in_order(function, items, self._workers):
            advance(result)


class WorkerDied(DataError):
    """A worker process was killed; what was finished stays, and the same command goes on from there."""


def available() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, threads: int = 1
) -> Iterator[Result]:
    """function(item) for each item, in order; the results do not depend on `workers`.

    Args:
      function: picklable when workers > 1.
      items: read a few ahead of the results.
      workers: processes; 1 calls the function here.
      threads: that libraries may use in each worker; here they use what they like.

    Raises:
      WorkerDied: a worker process was killed. Exceptions of `function` are raised as they are.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, because a fork of a process with threads (JAX's, a tokenizer's) may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(threads,)
    )
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
            "fewer --workers if it recurs; what was finished is kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    """Runs in each worker before its first item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizers library
    # A worker waits for items on a pipe whose other end it holds too, so it would outlive a parent that is killed.
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

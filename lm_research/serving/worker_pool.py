"""Threads for work that would block the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from starlette.exceptions import HTTPException


@dataclasses.dataclass
class _Job:
    function: Callable[[], Any]
    future: Future[Any] = dataclasses.field(default_factory=Future)
    abandoned: bool = False


class WorkerPool:
    """Threads with a bounded queue.

    Args:
      name: name of the threads.
      threads: number of threads.
      max_queue: maximum number of functions that wait.
    """

    def __init__(self, name: str, threads: int, max_queue: int) -> None:
        self._max_open, self._open, self._current = max_queue + threads, 0, threading.local()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a thread and return its result; raise HTTPException if too many wait.

        If the caller is cancelled, the function still occupies its thread until it returns.
        """
        if self._open >= self._max_open:
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"})
        job = _Job(function)
        self._open += 1
        try:
            self._queue.put(job)
            return await asyncio.wrap_future(job.future)
        finally:
            job.abandoned = True
            self._open -= 1

    def check_wanted(self) -> None:
        """Raise HTTPException if the caller of the running function no longer waits; long functions call it regularly."""
        if self._current.job.abandoned:
            raise HTTPException(504, "The client no longer waits.")

    def close(self, seconds: float) -> bool:
        """End the threads after their current functions, and return whether they ended within `seconds`."""
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if not job.future.set_running_or_notify_cancel():  # cancelled while it waited
                continue
            self._current.job = job
            try:
                job.future.set_result(job.function())
            except Exception as error:
                job.future.set_exception(error)
            except BaseException as error:  # bindings of other languages raise such exceptions
                job.future.set_exception(RuntimeError(f"A library failed: {error}"))

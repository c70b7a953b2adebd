"""Threads for what would hold up the event loop."""

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
    given_up: bool = False


class Lane:
    """Some threads, and a bound on what waits for them."""

    def __init__(self, name: str, threads: int, most: int) -> None:
        self._most, self._open, self._current = most + threads, 0, threading.local()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[[], Any]) -> Any:
        """What a function gives in a thread; raises HTTPException if too many wait. Given up, it keeps its thread until it ends."""
        if self._open >= self._most:
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"})
        job = _Job(function)
        self._open += 1
        try:
            self._queue.put(job)
            return await asyncio.wrap_future(job.future)
        finally:
            job.given_up = True
            self._open -= 1

    def go_on(self) -> None:
        """For a function to call now and then: raises HTTPException once nobody waits for it any more."""
        if self._current.job.given_up:
            raise HTTPException(504, "Nobody waits any more.")

    def close(self, seconds: float) -> bool:
        """Ends the threads after what they are at; whether that was within some seconds."""
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if not job.future.set_running_or_notify_cancel():  # nobody waits any more
                continue
            self._current.job = job
            try:
                job.future.set_result(job.function())
            except Exception as error:
                job.future.set_exception(error)
            except BaseException as panic:  # of a library of another language
                job.future.set_exception(RuntimeError(f"A library failed: {panic}"))

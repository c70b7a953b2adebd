"""Trackers as guests of a run.

A tracker works on a thread of its own behind a queue that drops rather than waits, what goes wrong in it becomes
one line of the log, and a run that ends waits for it only so long. metrics.jsonl has every line in any case.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lm_research.errors import ConfigError
from lm_research.run.trackers.base import CLOSE_SECONDS, TRACKERS, TrackedRun, Tracker

_QUEUE = 10_000  # lines that wait for a slow tracker before further ones are dropped

Values = Mapping[str, Any]
Warn = Callable[[str], None]
Call = Callable[[Tracker], None]


def check_installed(names: Sequence[str]) -> None:
    """Raises a ConfigError with the command to run if the package of a tracker is missing."""
    for name in names:
        package = TRACKERS.get(name).package
        if package and find_spec(package) is None:
            raise ConfigError(
                f"logging.trackers has {name}, but the package {package} is not installed. Install it: "
                f"pip install '{package}' (or pip install -e '.[{name}]'), or leave {name} out."
            )


class Trackers:
    """All trackers of a run; no method raises, or waits longer than `close` says."""

    def __init__(
        self, names: Sequence[str], workdir: pathlib.Path, resume_step: int, config: Mapping[str, Any], warn: Warn
    ) -> None:
        """Args: `config` is shown with the run (nested dicts of plain values), `warn` gets one line a failing tracker."""
        run = TrackedRun(workdir, resume_step, config)
        self._threads = [_Thread(name, functools.partial(TRACKERS.get(name), run), warn) for name in names]

    def write(self, step: int, values: Values) -> None:
        """The numbers among `values`."""
        numbers = {
            ("eval/" if name.startswith("eval_") else "train/") + name.removeprefix("eval_"): float(value)
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for thread in self._threads:
            thread.put(lambda tracker: tracker.write(step, numbers))

    def write_text(self, step: int, name: str, text: str) -> None:
        for thread in self._threads:
            thread.put(lambda tracker: tracker.write_text(step, name, text))

    def close(self, failed: bool = False) -> None:
        """Waits, for a bounded time, until everything has arrived. `failed`: the run ends by an error."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:  # first all, then the wait: they end side by side
            thread.put(lambda tracker: tracker.close(failed), last=True)
        for thread in self._threads:
            thread.finish(max(0.0, deadline - time.monotonic()))


class _Thread(threading.Thread):
    """One tracker, made and called on this thread, in order, until its `close`."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Warn) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)  # a daemon: one that hangs does not keep the process
        self._tracker, self._make, self._warn, self._warned = name, make, warn, False
        self._calls: queue.Queue[tuple[Call, bool]] = queue.Queue(_QUEUE)
        self.start()

    def put(self, call: Call, last: bool = False) -> None:
        """Has the tracker called, after all before; `last`: and ends."""
        try:
            self._calls.put_nowait((call, last))
        except queue.Full:
            self._say(f"is slower than the run: {_QUEUE} lines wait for it, and it misses some")

    def finish(self, seconds: float) -> None:
        self.join(seconds)
        if self.is_alive():
            self._say("had not taken everything as the run ended, and misses the rest")
            self._warned = True  # nothing it does from here on is of interest

    def run(self) -> None:
        try:
            tracker = self._make()
        except BaseException as error:  # libraries raise SystemExit and worse; none of it may end anything here
            return self._fail("could not start", error)
        last = False
        while not last:
            call, last = self._calls.get()
            try:
                call(tracker)
            except BaseException as error:
                self._fail("missed a line", error)

    def _fail(self, what: str, error: BaseException) -> None:
        self._say(f"{what} ({type(error).__name__}: {redacted(' '.join(str(error).split()))[:300]})")

    def _say(self, what: str) -> None:
        """One line a run, for the first thing that goes wrong."""
        if not self._warned:
            self._warned = True
            with contextlib.suppress(OSError):  # of the log, on a disk that may be full: the run meets it too
                self._warn(f"tracker {self._tracker} {what}; the run goes on, and metrics.jsonl has every line")


def redacted(text: str) -> str:
    """`text` without what looks secret: user:password in addresses, and values of variables named KEY, TOKEN, PASSWORD, SECRET."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text

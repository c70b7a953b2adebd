"""Trackers on threads, isolated from the run.

Each tracker has a thread behind a queue that drops lines rather than block the run. Its first error becomes one line of the log, and
the end of a run waits for it only for a limited time. metrics.jsonl has every line in any case.
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
    """Raise a ConfigError with the command to install it if the package of a tracker is missing."""
    for name in names:
        package = TRACKERS.get(name).package
        if package and find_spec(package) is None:
            raise ConfigError(
                f"logging.trackers has {name}, but the package {package} is not installed. Install it: "
                f"pip install '{package}' (or pip install -e '.[{name}]'), or leave {name} out."
            )


class Trackers:
    """All trackers of a run; no method raises, and only `close` waits."""

    def __init__(
        self, names: Sequence[str], workdir: pathlib.Path, resume_step: int, config: Mapping[str, Any], warn: Warn
    ) -> None:
        """Start the threads; `config` is shown with the run (nested dicts of plain values), `warn` receives one line per failing tracker."""
        run = TrackedRun(workdir, resume_step, config)
        self._threads = [_Thread(name, functools.partial(TRACKERS.get(name), run), warn) for name in names]

    def write(self, step: int, values: Values) -> None:
        """Send the numbers among `values` to all trackers."""
        numbers = {
            ("eval/" if name.startswith("eval_") else "train/") + name.removeprefix("eval_"): float(value)
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for thread in self._threads:
            thread.put(lambda tracker: tracker.write(step, numbers))

    def write_text(self, step: int, name: str, text: str) -> None:
        """Send a text to all trackers."""
        for thread in self._threads:
            thread.put(lambda tracker: tracker.write_text(step, name, text))

    def close(self, failed: bool = False) -> None:
        """Wait for a limited time until everything has arrived; `failed` if the run ends with an error."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:  # close all before waiting, so that they finish concurrently
            thread.put(lambda tracker: tracker.close(failed), last=True)
        for thread in self._threads:
            thread.finish(max(0.0, deadline - time.monotonic()))


class _Thread(threading.Thread):
    """One tracker, which is made, called in order, and closed on this thread."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Warn) -> None:
        super().__init__(
            name=f"tracker {name}", daemon=True
        )  # a daemon, so that a hanging one does not keep the process alive
        self._tracker, self._make, self._warn, self._warned = name, make, warn, False
        self._calls: queue.Queue[tuple[Call, bool]] = queue.Queue(_QUEUE)
        self.start()

    def put(self, call: Call, last: bool = False) -> None:
        """Queue a call of the tracker; `last` ends the thread after it."""
        try:
            self._calls.put_nowait((call, last))
        except queue.Full:
            self._warn_once(f"is slower than the run: {_QUEUE} lines wait for it, and it misses some")

    def finish(self, seconds: float) -> None:
        self.join(seconds)
        if self.is_alive():
            self._warn_once("had not received everything when the run ended, and misses the rest")
            self._warned = True  # later errors do not matter

    def run(self) -> None:
        try:
            tracker = self._make()
        except BaseException as error:  # libraries even raise SystemExit, which must not end the run
            return self._fail("could not start", error)
        last = False
        while not last:
            call, last = self._calls.get()
            try:
                call(tracker)
            except BaseException as error:
                self._fail("missed a line", error)

    def _fail(self, what: str, error: BaseException) -> None:
        self._warn_once(f"{what} ({type(error).__name__}: {redact(' '.join(str(error).split()))[:300]})")

    def _warn_once(self, what: str) -> None:
        """Log one line per run, for the first problem."""
        if not self._warned:
            self._warned = True
            with contextlib.suppress(OSError):  # the log's disk may be full, which the run reports itself
                self._warn(f"tracker {self._tracker} {what}; the run continues, and metrics.jsonl has every line")


def redact(text: str) -> str:
    """Redact user:password in addresses, and values of environment variables named KEY, TOKEN, PASSWORD or SECRET."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text

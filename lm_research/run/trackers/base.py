"""The contract of trackers, and their registry.

@TRACKERS.register("csv")
class Csv(Tracker): ...
"""

from __future__ import annotations

import abc
import dataclasses
import json
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from lm_research.common.disk import write_atomically
from lm_research.common.documents import read_json
from lm_research.config import registries
from lm_research.config.variants import Variants

IDS = "trackers.json"  # in the run directory: the id of the run at each tracker, so that a resumed run continues there
CLOSE_SECONDS = 20.0  # the longest time that the end of a run waits for all its trackers together


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker records.

    Attributes:
      workdir: the run directory.
      resume_step: the step that the run resumes from; values of later steps are sent again.
      config: shown with the run, nested dicts of plain values.
    """

    workdir: pathlib.Path
    resume_step: int
    config: Mapping[str, Any]


class Tracker(abc.ABC):
    """Receives the metrics of a run. It is made, called and closed on a thread of its own, and may raise anything.

    Attributes:
      package: the package that must be installed, by its pip name; "" if none is needed.
    """

    package: ClassVar[str] = ""

    @abc.abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abc.abstractmethod
    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the numbers of one step, by names such as train/loss_nats."""

    @abc.abstractmethod
    def write_text(self, step: int, name: str, text: str) -> None:
        """Record a text, such as samples."""

    @abc.abstractmethod
    def close(self, failed: bool) -> None:
        """Finish the record; `failed` if the run ended with an error."""


TRACKERS: Variants[type[Tracker]] = registries.TRACKERS


class TrackerIds:
    """WORKDIR/trackers.json: tracker -> id of this run there."""

    _lock = threading.Lock()  # trackers start concurrently

    def __init__(self, workdir: pathlib.Path) -> None:
        self._path = workdir / IDS

    def _read(self) -> dict[str, str]:
        return (
            read_json(self._path, dict[str, str], fix="Delete it to start new runs there.")
            if self._path.exists()
            else {}
        )

    def get(self, tracker: str) -> str | None:
        """Look up the run's id at a tracker; None if it has none yet."""
        with self._lock:
            return self._read().get(tracker)

    def put(self, tracker: str, run_id: str) -> str:
        """Store the run's id at a tracker, and return it."""
        with self._lock:
            write_atomically(self._path, json.dumps(self._read() | {tracker: run_id}, indent=1) + "\n")
        return run_id

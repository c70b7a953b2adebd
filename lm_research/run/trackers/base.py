"""What a tracker is, and where it registers.

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

IDS = "trackers.json"  # in the run directory: the id of the run at each tracker, so that a resumed run goes on with it
CLOSE_SECONDS = 20.0  # what the end of a run waits for its trackers, all together


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker is made for.

    Attributes:
      workdir: the run directory.
      resume_step: the step that the run goes on from; what was told of later ones is told again.
      config: to be shown with the run, nested dicts of plain values.
    """

    workdir: pathlib.Path
    resume_step: int
    config: Mapping[str, Any]


class Tracker(abc.ABC):
    """Takes what a run measures. It is made, called and closed on a thread of its own, and may raise whatever it likes.

    Attributes:
      package: that must be installed, and what pip calls it; "" where there is none.
    """

    package: ClassVar[str] = ""

    @abc.abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abc.abstractmethod
    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of one step, by names such as train/loss_nats."""

    @abc.abstractmethod
    def write_text(self, step: int, name: str, text: str) -> None:
        """A text, such as samples."""

    @abc.abstractmethod
    def close(self, failed: bool) -> None:
        """The run ends; `failed`: by an error."""


TRACKERS: Variants[type[Tracker]] = registries.TRACKERS


class TrackerIds:
    """WORKDIR/trackers.json: tracker -> id of this run there."""

    _lock = threading.Lock()  # trackers start side by side

    def __init__(self, workdir: pathlib.Path) -> None:
        self._path = workdir / IDS

    def _read(self) -> dict[str, str]:
        return (
            read_json(self._path, dict[str, str], fix="Delete it to begin anew there.") if self._path.exists() else {}
        )

    def get(self, tracker: str) -> str | None:
        with self._lock:
            return self._read().get(tracker)

    def put(self, tracker: str, run_id: str) -> str:
        with self._lock:
            write_atomically(self._path, json.dumps(self._read() | {tracker: run_id}, indent=1) + "\n")
        return run_id

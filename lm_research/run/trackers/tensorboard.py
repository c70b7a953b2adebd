"""TensorBoard, through the package tensorboardX."""

from __future__ import annotations

import time
from typing import Any

from typing_extensions import override

from lm_research.run.trackers.base import TRACKERS, TrackedRun, Tracker


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Event files in WORKDIR/tensorboard; later steps than the one a run resumes from are purged.

    This writes on its own thread, because that of the package's SummaryWriter dies of a full disk and then blocks its callers.
    """

    package = "tensorboardX"

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._summary, self._event, self._file = summary, Event, EventsWriter(str(folder / "events"))
        first = run.resume_step + 1
        self._put(first, {"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)})

    def _put(self, step: int, *contents: dict[str, Any]) -> None:
        for content in contents:
            self._file.write_event(self._event(step=step, wall_time=time.time(), **content))
        self._file.flush()

    @override
    def write(self, step: int, values: dict[str, float]) -> None:
        self._put(step, *({"summary": self._summary.scalar(name, value)} for name, value in values.items()))

    @override
    def write_text(self, step: int, name: str, text: str) -> None:
        self._put(step, {"summary": self._summary.text(name, text.replace("\n", "  \n"))})

    @override
    def close(self, failed: bool) -> None:
        self._file.close()

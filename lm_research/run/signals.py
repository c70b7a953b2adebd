"""SIGTERM and Ctrl-C: finish the step, save, and exit with the code that means "the same command resumes".

If any process receives a signal, all processes stop at the same step.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax

from lm_research.common.interrupts import SIGNALS
from lm_research.parallel import processes


class StopRequest:
    """Context manager that turns the first signal into a flag; a second one ends the process at once.

    With several processes, jax.distributed handles SIGTERM, and Ctrl-C is forwarded to it; see `should_stop`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        processes.agree_on_stops()
        for number in SIGNALS if jax.process_count() == 1 else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
        if jax.process_count() > 1:
            processes.forward_to_preemption()

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def should_stop(self, step: int) -> bool:
        """Decide whether to stop before `step`, equally in all processes, which must call this before every step."""
        return processes.should_stop(step, bool(self))

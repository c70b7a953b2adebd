"""Filters for messages that Orbax and TensorStore log in addition to the errors that they raise.

Every such error is raised, and reported once. Orbax also logs it with a traceback, and asyncio does so for each array in
progress; TensorStore's threads, which still run when the first of them fails, report to an event loop that is already closed.
"""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
import warnings
from typing import Any


def silence_duplicate_errors() -> None:
    """Install the filters for this process."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_from_orbax)
    # Coroutines that had not started when the first one failed.
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    if sys.unraisablehook is not _ignore:
        _Before.hook = sys.unraisablehook
        sys.unraisablehook = _ignore


class _Before:
    hook = sys.unraisablehook


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    if record.name == "asyncio" and record.exc_info and trace is None:
        return False  # no Python code raised it: TensorStore reports an array that nobody waits for any more
    return not any("/orbax/" in place.filename for place in traceback.extract_tb(trace))


def _ignore(unraisable: Any) -> None:
    closed_loop = unraisable.exc_type is RuntimeError and "Event loop is closed" in str(unraisable.exc_value)
    # An event loop whose construction failed for lack of file descriptors.
    broken_loop = unraisable.exc_type is AttributeError and "_ssock" in str(unraisable.exc_value)
    aborted = inspect.iscoroutine(unraisable.object) and "/orbax/" in unraisable.object.cr_code.co_filename
    if not (closed_loop or broken_loop or aborted):
        _Before.hook(unraisable)

"""What Orbax and TensorStore print beside the error that they raise, when something cannot be written or read: kept from people.

Every such error reaches us, and is told once. The same is logged with its traceback by Orbax, and by asyncio for each array that was
under way; TensorStore's threads, which still write as the first of them fails, tell an event loop that has ended by then.
"""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
import warnings
from typing import Any


def silence_duplicate_errors() -> None:
    """From now on none of it is shown."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_echo)
    warnings.filterwarnings(
        "ignore", "coroutine '.*' was never awaited", RuntimeWarning
    )  # as the first one of several failed
    if sys.unraisablehook is not _ignore:
        _Before.hook = sys.unraisablehook
        sys.unraisablehook = _ignore


class _Before:
    hook = sys.unraisablehook


def _is_no_echo(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    return not any("/orbax/" in place.filename for place in traceback.extract_tb(trace))


def _ignore(lost: Any) -> None:
    late = lost.exc_type is RuntimeError and "Event loop is closed" in str(lost.exc_value)
    unmade = lost.exc_type is AttributeError and "_ssock" in str(lost.exc_value)  # a loop that got no file of its own
    reading = (
        inspect.iscoroutine(lost.object) and "/orbax/" in lost.object.cr_code.co_filename
    )  # as the first error came
    if not (late or unmade or reading):
        _Before.hook(lost)

"""What is logged beside the errors that Orbax and TensorStore raise, and what stays."""

from __future__ import annotations

import logging

import pytest

from lm_research.interop.orbax_noise import silence_duplicate_errors


def raised() -> ValueError:
    try:
        raise ValueError("of Python code")
    except ValueError as error:
        return error


def test_arrays_that_nobody_waits_for_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The exception of a future is logged when the future is collected; those that a thread outside of Python set have no traceback."""
    silence_duplicate_errors()
    for error in (ValueError("FAILED_PRECONDITION: Error reading an array"), raised()):
        logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=error)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["of Python code"]

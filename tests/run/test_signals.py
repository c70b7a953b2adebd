"""The first signal requests a stop, the second ends the process, and the previous handlers are restored."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from lm_research.run.signals import StopRequest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_a_flag(number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request and request.signal == number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_without_a_signal_no_stop_is_requested() -> None:
    with StopRequest() as request:
        pass
    assert not request


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: int) -> None:
    code = f"""
import os, signal
from lm_research.run.signals import StopRequest
with StopRequest() as request:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", bool(request), flush=True)
    os.kill(os.getpid(), {int(second)})
    print("not here")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-second, "still here True\n")

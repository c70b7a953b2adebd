"""A process that dies or hangs ends the others of its run with one paragraph and code 75, whatever they are waiting for."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from lm_research.parallel import peers, processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A run without a model: repeated collectives, as in steps and evaluations.
RUN = """
import pathlib, sys
from lm_research.parallel import exchange, processes
with processes.joined(pathlib.Path(sys.argv[1])):
    exchange.all_processes(True)
    print("together", flush=True)
    while True:
        exchange.all_processes(True)
"""


def start(workdir: pathlib.Path, count: int) -> list[subprocess.Popen[str]]:
    """Processes of one run, once they have met."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    settings = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "LM_RESEARCH_HEARTBEAT_SECONDS": "5",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(workdir)],
            env=settings | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in started:
        while (line := process.stdout.readline()) and line != "together\n":  # gloo also writes a line
            pass
    return started


@pytest.mark.parametrize(
    ("number", "lost", "count"),
    [
        (signal.SIGKILL, 0, 2),
        *(
            pytest.param(number, lost, count, marks=pytest.mark.slow)
            for number in (signal.SIGKILL, signal.SIGSTOP)
            for lost, count in ((0, 2), (1, 2), (0, 3), (1, 3))
            if (number, lost, count) != (signal.SIGKILL, 0, 2)
        ),
    ],
)
def test_the_others_end_with_our_message(tmp_path: pathlib.Path, number: int, lost: int, count: int) -> None:
    started = start(tmp_path, count)
    try:
        started[lost].send_signal(number)
        for other, process in enumerate(started):
            if other == lost:
                continue
            _, errors = process.communicate(timeout=120)
            said = [line for line in errors.splitlines() if "Gloo" not in line]
            assert process.returncode == 75, errors
            (line,) = said
            assert line.startswith(f"process {other} of {count} ends: process {lost} of this run ")
            assert "the same command, started in every process, resumes the run" in line
            assert line in (tmp_path / processes.log_name(other)).read_text()
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_process_that_takes_leave_is_not_lost_and_one_that_ends_reports_its_code() -> None:
    """Process 0 receives: 1 is done, 2 ends with code 2; 3 closes its connection without a message, too late to be reported."""
    pairs = {number: socket.socketpair() for number in (1, 2, 3)}
    called: list[int] = []
    all_of_0 = peers.Peers({number: pair[0] for number, pair in pairs.items()}, lambda: called.append(1))
    one, two = (peers.Peers({0: pairs[number][1]}, lambda: None) for number in (1, 2))
    one.close()
    pairs[1][1].close()
    assert all_of_0.wait(0.2) is None
    two.ends(2, 2)
    assert all_of_0.wait(10) == (2, 2)
    pairs[3][1].close()
    assert all_of_0.wait(0) == (2, 2) and called == []
    all_of_0.close()


def test_a_closed_connection_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three processes the last is killed: the other worker learns its number from process 0."""
    monkeypatch.setattr(peers, "_GRACE", {True: 0.0, False: 0.0})
    first, second = socket.socketpair(), socket.socketpair()
    ended: list[str] = []
    all_of_0 = peers.Peers({1: first[0], 2: second[0]}, lambda: ended.append("0"))
    worker = peers.Peers({0: first[1]}, lambda: ended.append("1"))
    second[1].close()
    assert all_of_0.wait(10) == worker.wait(10) == (2, None)


def test_silence_counts_as_a_loss_without_heartbeats() -> None:
    here, there = socket.socketpair()
    silent = peers.Peers({1: here}, lambda: None)
    silent.patience = 0.0
    assert silent.wait(10) == (1, None)
    there.close()

"""The lease of a run directory in a bucket, against a stand-in for Google Cloud Storage."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from helpers.gcs_server import GcsServer, served_here
from helpers.train_helpers import ROOT
from lm_research.common.paths import as_path
from lm_research.errors import USER_ERROR, CheckpointError
from lm_research.run import lease, run_directory

pytest.importorskip("gcsfs")
RUN = "gs://bucket/a/run"
HOLD = f"""
import time
from lm_research.common.paths import as_path
from lm_research.run import run_directory
held = run_directory.lock(as_path({RUN!r}))
print("held", held.number, flush=True)
time.sleep(120)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LM_RESEARCH_LEASE_SECONDS", "1.2")
    with served_here() as server:
        yield server


def holder(server: GcsServer) -> subprocess.Popen[str]:
    settings = os.environ | server.environment | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held 1\n"
    return process


def put(server: GcsServer, number: int, **changes: object) -> None:
    """Write the lease of a process on another machine."""
    content = lease._this_process() | {"boot": "another machine", "host": "far", "pid": 7} | changes
    server.put("bucket", f"a/run/.lock/{number}.json", json.dumps(content).encode(), {})


def test_of_two_processes_one_holds_it_and_the_other_learns_which(server: GcsServer) -> None:
    process = holder(server)
    try:
        with pytest.raises(CheckpointError, match=rf"{RUN} is in use .*process {process.pid} on .* choose another"):
            run_directory.lock(as_path(RUN))
    finally:
        process.kill()
        process.communicate()
    with run_directory.lock(as_path(RUN)) as held:  # at once, because this machine sees that the process has ended
        assert isinstance(held, lease.Lease) and held.number == 2
    assert server.names(prefix="a/run/.lock") == ["a/run/.lock/2.json"]


def test_it_can_be_taken_as_soon_as_it_was_released(server: GcsServer) -> None:
    put(server, 4, released=True)
    run_directory.lock(as_path(RUN)).close()
    with run_directory.lock(as_path(RUN)) as held:
        assert held.number == 6


def test_one_of_another_machine_is_taken_over_only_if_it_is_not_renewed(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, 1)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: put(server, 1, time=time.time()))
    with pytest.raises(CheckpointError, match="process 7 on far"):
        run_directory.lock(as_path(RUN))
    monkeypatch.undo()
    monkeypatch.setenv("LM_RESEARCH_LEASE_SECONDS", "0.5")
    with run_directory.lock(as_path(RUN)) as held:
        assert held.number == 2


def test_of_many_that_take_it_at_once_one_gets_it(server: GcsServer) -> None:
    held: list[lease.Lease] = []

    def take() -> None:
        try:
            held.append(run_directory.lock(as_path(RUN)))
        except CheckpointError:
            pass

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].close()


def test_a_process_that_has_lost_it_ends(server: GcsServer) -> None:
    process = holder(server)
    put(server, 2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == USER_ERROR and said.startswith(f"error: --workdir={RUN} was taken over")


def test_a_bucket_that_refuses_requests_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_RESEARCH_LEASE_SECONDS", "0.3")
    with served_here(share=0.2, latency=0.01) as server:
        with run_directory.lock(as_path(RUN)) as held:
            time.sleep(0.5)
            assert held.number == 1
        assert server.counts["fault"] and json.loads(server.objects["bucket", "a/run/.lock/1.json"].data)["released"]


@pytest.mark.parametrize("address", ["gs://other/run", "gs://closed/run"])
def test_a_bucket_that_cannot_be_used(address: str, server: GcsServer) -> None:
    server.buckets.add("closed")
    server.denied.add("closed")
    with pytest.raises(CheckpointError, match=f"--workdir={address} cannot be written: (permission|no such bucket)"):
        run_directory.lock(as_path(address))
    assert len(list(pathlib.Path().glob("gs:*"))) == 0

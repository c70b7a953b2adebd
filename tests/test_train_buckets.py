"""Runs whose directory is in a bucket, against a stand-in for Google Cloud Storage that is slow and refuses some requests.

They end like runs on a disk, bit for bit, however they were interrupted.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from helpers.gcs_server import Faults, GcsServer
from helpers.train_helpers import ROOT, SAVE, SLOW_FEED, STEPS, Lab, finish, kill_when, same

pytest.importorskip("gcsfs")
RUN = "gs://bucket/runs/a"
# Two processes that check one directory, and then each its own.
APART = """
import os, pathlib, sys
from lm_research.parallel import processes
from lm_research.run import run_directory
run_directory._SHARED_SECONDS = 1.0
folder = pathlib.Path(sys.argv[1])
with processes.joined(folder):
    run_directory.check_shared(folder / "same")
    print("the same", flush=True)
    run_directory.check_shared(folder / f"host{processes.jax.process_index()}")
"""


def fetched(server: GcsServer, folder: pathlib.Path) -> pathlib.Path:
    """Copy the run from the bucket to a folder, without its checkpoints."""
    for name in server.names(prefix="runs/a/"):
        if "/checkpoints/" not in name:
            path = folder / name.removeprefix("runs/a/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(server.objects["bucket", name].data)
    return folder


def complete(server: GcsServer) -> list[int]:
    """The steps of the complete checkpoints."""
    names = [name.split("/") for name in server.names(prefix="runs/a/checkpoints/")]
    return sorted(int(parts[3]) for parts in names if parts[4:] == ["commit_success.txt"])


@pytest.mark.slow
def test_a_run_is_stopped_by_a_signal_and_continues_from_the_bucket(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with GcsServer(faults=Faults(seed=1, share=0.03, latency=0.01)) as server:
        first = lab.start(RUN, before=SLOW_FEED, **server.environment)
        kill_when(first, lambda: complete(server), signal.SIGTERM)
        code, output = finish(first)
        assert code == 75 and "everything is saved" in output, output
        stopped = json.loads(server.objects["bucket", "runs/a/summary.json"].data)["step"]
        assert SAVE <= stopped < STEPS and complete(server)[-1] == stopped
        second = lab.start(RUN, "--config.logging.trackers=tensorboard", **server.environment)
        code, output = finish(second)
        assert code == 0 and f"resuming after step {stopped}" in output and f"compare {RUN} runs/OTHER" in output, (
            output
        )
        assert server.counts["fault"]
        assert same(bert_run, fetched(server, tmp_path))
    assert list((tmp_path / "tensorboard").iterdir())
    log = (tmp_path / "log.txt").read_text()
    assert log.count(f"run: {RUN} on 1 x cpu") == 2 and "/tmp/lm_research-" not in log
    (lease,) = (tmp_path / ".lock").iterdir()
    assert json.loads(lease.read_text())["released"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_continues_from_the_bucket(
    seed: int, lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with GcsServer(faults=Faults(seed=seed, share=0.05, latency=0.03)) as server:
        for number in range(2):
            process = lab.start(RUN, before=SLOW_FEED, **server.environment)
            kill_when(process, lambda n=number: len(complete(server)) > n, signal.SIGKILL)
            finish(process)
        code, output = finish(lab.start(RUN, **server.environment))
        assert code == 0 and "resuming after step" in output and "WARNING: " not in output, output
        assert same(bert_run, fetched(server, tmp_path))


@pytest.mark.slow
def test_a_bucket_that_is_gone_for_some_seconds(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with GcsServer() as server:
        process = lab.start(RUN, before=SLOW_FEED, **server.environment)
        kill_when(process, lambda: complete(server), signal.SIGCONT)  # which only wakes it
        server.faults.share = 1.0
        time.sleep(8)
        server.faults.share = 0.0
        code, output = finish(process)
        assert code == 0 and server.counts["fault"] > 3, output
        assert same(bert_run, fetched(server, tmp_path))


@pytest.mark.slow
def test_text_is_read_in_place_and_a_change_of_it_ends_the_run(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def run(name: str, *flags: str, before: str = "") -> tuple[int, str]:
        own = server.environment | {"LM_RESEARCH_CACHE": str(tmp_path / "cache" / name)}
        place = "--config.data.cache_dir=gs://bucket/text"
        return finish(lab.start(tmp_path / name, place, *flags, before=before, **own))

    with GcsServer(faults=Faults(seed=1, share=0.03)) as server:
        small = "from lm_research.data import store\nstore.BLOCK = 512"
        code, output = run("built", "--config.train.num_steps=1", before=small)
        assert code == 0, output
        code, output = run("read")
        assert code == 0 and "Corpus found" in output, output
        assert same(bert_run, tmp_path / "read")
        (text,) = [name for name in server.names(prefix="text/") if name.endswith("/train/tokens.bin")]
        server.put("bucket", text, server.objects["bucket", text].data[::-1], {})
        for workers in (0, 1):
            code, output = run(f"changed{workers}", f"--config.data.num_workers={workers}")
            assert code == 2 and output.count(f"{text} is not what it was") == 1, output
            assert "Traceback" not in output


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_runs(lab: Lab) -> None:
    with GcsServer() as server:
        first = lab.start(RUN, before=SLOW_FEED, **server.environment)
        kill_when(
            first, lambda: complete(server), signal.SIGSTOP
        )  # on a busy machine it would end before the second begins
        code, output = finish(lab.start(RUN, **server.environment))
        first.send_signal(signal.SIGCONT)
        assert (
            code == 2 and f"error: --workdir={RUN} is in use by another running process (process {first.pid}" in output
        )
        code, output = finish(first)
        assert code == 0, output


@pytest.mark.slow
def test_a_run_on_two_hosts_writes_one_directory(lab: Lab, tmp_path: pathlib.Path) -> None:
    pod = [sys.executable, str(ROOT / "launch/local_pod.py"), "--devices_per_process=1", "--"]
    with GcsServer() as server:
        flags = [*lab.flags(), f"--workdir={RUN}"]
        done = subprocess.run([*pod, *flags], env=os.environ | server.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert complete(server)[-1] == STEPS
        found = fetched(server, tmp_path)
        assert "run: " in (found / "logs/process_1.txt").read_text()
        assert json.loads((found / "summary.json").read_text())["status"] == "finished"


def test_hosts_with_different_directories_are_told(tmp_path: pathlib.Path) -> None:
    """As with a path that is on each host's own disk; without a check they would wait for each other at a save."""
    (tmp_path / "run_apart.py").write_text(APART)
    settings = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    pod = [sys.executable, str(ROOT / "launch/local_pod.py"), "--devices_per_process=1", "--module=run_apart", "--"]
    done = subprocess.run([*pod, str(tmp_path)], env=settings, capture_output=True, text=True)
    assert done.stdout.count("the same") == 2 and done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if " of 2 ends: error: The processes of this run do not" in line]
    assert len(lines) == 2 and all(f"process 1 ({tmp_path}/host1 on " in line for line in lines)
    assert "Traceback" not in done.stderr and all(len(line) < 500 for line in lines)
    assert not [name for name in os.listdir(tmp_path / "same") if name.startswith(".shared")]

"""A pod of processes computes what one process does, bit for bit, and all its processes end together."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from helpers.train_helpers import LOG, ROOT, STEPS, Lab, checkpoints, finish, last_step, same, summary

POD = str(ROOT / "launch" / "local_pod.py")


def start(lab: Lab, workdir: pathlib.Path, processes: int, devices: int, *flags: str) -> subprocess.Popen[str]:
    paths = f"{ROOT / 'tests' / 'launch'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    pod = [f"--processes={processes}", f"--devices_per_process={devices}", "--module=slow_train", "--grace=5"]
    command = [
        sys.executable,
        POD,
        *pod,
        "--",
        *lab.flags(),
        "--config.mesh.preset=fsdp",
        f"--workdir={workdir}",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def strike(pod: subprocess.Popen[str], workdir: pathlib.Path, process_id: int, number: int) -> float:
    """Send a signal to one process of the pod once it has written a line of metrics; return the time."""
    pids = re.match(r"local_pod: pids (.+)", pod.stdout.readline())[1].split()
    deadline = time.monotonic() + 200
    while last_step(workdir) < LOG:
        assert pod.poll() is None and time.monotonic() < deadline, finish(pod)
        time.sleep(0.01)
    os.kill(int(pids[process_id]), number)
    return time.monotonic()


@pytest.mark.slow
def test_killed_and_resumed_two_processes_end_like_one(lab: Lab, tmp_path: pathlib.Path) -> None:
    """2 processes x 2 devices, one killed with -9, resumed: the bits of 1 process x 4 devices, uninterrupted.

    The remaining process ends by itself or is ended after the grace of 5 s; a loaded machine gets ten more.
    """
    pod = start(lab, tmp_path / "pod", 2, 2)
    begin = strike(pod, tmp_path / "pod", 1, signal.SIGKILL)
    code, output = finish(pod)
    assert time.monotonic() - begin < 15
    assert code == 128 + signal.SIGKILL, output
    assert "process 1 (pid" in output and "ended with code -9" in output
    assert "finished" not in output
    code, output = finish(start(lab, tmp_path / "pod", 2, 2))
    assert code == 0, output
    assert "resuming after step 6" in output
    assert output.count("finished: 20 steps") == 1  # only process 0 prints
    assert "status" not in (tmp_path / "pod" / "log.txt").read_text()
    assert "finished" in (tmp_path / "pod" / "logs" / "process_1.txt").read_text()
    code, output = finish(start(lab, tmp_path / "one", 1, 4))
    assert code == 0, output
    assert same(tmp_path / "one", tmp_path / "pod")


@pytest.mark.slow
@pytest.mark.parametrize("process_id", [0, 1])
def test_a_signal_to_any_process_stops_all_at_one_step(lab: Lab, tmp_path: pathlib.Path, process_id: int) -> None:
    pod = start(lab, tmp_path / "pod", 2, 2, "--config.train.num_steps=60")
    strike(pod, tmp_path / "pod", process_id, signal.SIGTERM)
    code, output = finish(pod)
    assert code == 75, output
    stopped = summary(tmp_path / "pod")
    assert stopped["status"] == "stopped" and LOG <= stopped["step"] < 60
    assert checkpoints(tmp_path / "pod")[-1] == stopped["step"]
    assert (tmp_path / "pod" / "logs" / "process_1.txt").read_text().rstrip().endswith("stopped")
    code, output = finish(start(lab, tmp_path / "pod", 2, 2, "--config.train.num_steps=60"))
    assert code == 0 and f"resuming after step {stopped['step']}" in output, output
    code, output = finish(start(lab, tmp_path / "one", 1, 4, "--config.train.num_steps=60"))
    assert code == 0, output
    assert same(tmp_path / "one", tmp_path / "pod")


@pytest.mark.slow
def test_a_pod_resumes_as_one_process(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Other processes and devices than before: the same loss within rounding."""
    pod = start(lab, tmp_path, 2, 2)
    strike(pod, tmp_path, 0, signal.SIGKILL)
    assert finish(pod)[0] == 128 + signal.SIGKILL
    code, output = finish(start(lab, tmp_path, 1, 2))
    assert code == 0 and "resuming after step 6" in output, output
    assert summary(tmp_path)["step"] == STEPS


def test_an_error_is_reported_once_and_its_code_returned(lab: Lab, tmp_path: pathlib.Path) -> None:
    """An unknown key is refused before jax starts: every process reports it by itself, and the pod returns 2."""
    code, output = finish(start(lab, tmp_path, 2, 1, "--config.train.steps=3"))
    assert code == 2
    assert "train.steps" in output and "Traceback" not in output
    code, output = finish(
        subprocess.Popen([sys.executable, POD], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    )
    assert code == 2 and "after --" in output

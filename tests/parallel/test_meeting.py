"""Processes that never meet at a save end within minutes, with the name of the one that is missing; slow compilations do not count."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A run without a model, whose process 1 compiles for longer than a save may wait, and does not come to the second save.
RUN = """
import pathlib, sys, time
from lm_research.parallel import exchange, processes
with processes.joined(pathlib.Path(sys.argv[1])):
    number = processes.jax.process_index()
    time.sleep(4 * number)
    exchange.wait_for_all("step compiled")
    exchange.meet("save checkpoint 10", "save/1", lambda: "")
    print("met\\n", end="", flush=True)  # in one write: both processes share a pipe
    time.sleep(600 * number)
    exchange.meet("save checkpoint 20", "save/2", lambda: "Checkpoint 10 is complete.")
"""


def test_a_process_that_does_not_come_to_a_save_is_named(tmp_path: pathlib.Path) -> None:
    pod = [sys.executable, str(ROOT / "launch/local_pod.py"), "--devices_per_process=1", "--grace=60"]
    (tmp_path / "run_without_model.py").write_text(RUN)
    settings = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "LM_RESEARCH_SAVE_SECONDS": "2"}
    begin = time.monotonic()
    done = subprocess.run(
        [*pod, "--module=run_without_model", "--", str(tmp_path / "run")], env=settings, capture_output=True, text=True
    )
    assert done.stdout.count("met\n") == 2  # after four seconds of compiling
    assert done.returncode == 75 and time.monotonic() - begin < 500
    lines = [line for line in done.stderr.splitlines() if " of 2 ends: " in line]
    assert lines[0].startswith(
        "process 0 of 2 ends: error: process 1 is missing: the others waited 2 s to save checkpoint 20. It hangs, or runs another"
    )
    assert "logs/process_1.txt. Checkpoint 10 is complete. Start the same command in every process" in lines[0]
    assert lines[0] in (tmp_path / "run/log.txt").read_text() and "Traceback" not in done.stderr

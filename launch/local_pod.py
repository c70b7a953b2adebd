"""`python launch/local_pod.py --processes=2 --devices_per_process=4 -- --config=configs/quickstart.py --workdir=runs/pod`.

Runs a pod on this machine: several processes with simulated CPU devices and real collectives between the processes (gloo).
The arguments after `--` go to `python -m lm_research.train`, or to another module with --module. If a process fails, the
others are killed and its exit code is returned. Ctrl-C and SIGTERM go to process 0, which makes all processes save and
stop at the same step.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]


def environment(process_id: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """Return the environment variables of a process of the pod."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process_id),
    }


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def watch(pod: Sequence[subprocess.Popen], grace: float) -> int:
    """Wait for all processes and return the exit code of the first that fails, or 0; the others are killed `grace` seconds later.

    A process ended by signal N has code 128 + N, as in a shell.
    """
    first, deadline = None, float("inf")
    while any(process.poll() is None for process in pod):
        if first is None:
            first = next((process for process in pod if process.poll() not in (None, 0)), None)
            if first:
                deadline = time.monotonic() + grace
                name = f"process {pod.index(first)} (pid {first.pid})"
                print(f"local_pod: {name} ended with code {first.returncode}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            kill(pod)
        time.sleep(0.05)
    codes = [process.returncode for process in pod]
    code = first.returncode if first else next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def kill(pod: Sequence[subprocess.Popen]) -> None:
    """Kill all running processes."""
    for process in pod:
        if process.poll() is None:
            process.kill()


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    own, rest = (list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        prog="local_pod.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes (2)")
    parser.add_argument("--devices_per_process", type=int, default=4, help="simulated devices of each process (4)")
    parser.add_argument("--module", default="lm_research.train", help="run with `python -m`")
    parser.add_argument(
        "--grace",
        type=float,
        default=10,
        help="seconds from the first failure until the remaining processes are killed",
    )
    flags = parser.parse_args(own)
    if flags.processes < 1 or flags.devices_per_process < 1:
        parser.error("--processes and --devices_per_process must be at least 1")
    if not rest:
        parser.error("nothing to run: write the arguments of training after --")
    pod: list[subprocess.Popen] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for process in pod[:1]:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    port = free_port()
    try:
        for process_id in range(flags.processes):
            settings = environment(process_id, flags.processes, flags.devices_per_process, port)
            # In a new session, so that Ctrl-C reaches only this process, which passes it on.
            command = [sys.executable, "-m", flags.module, *rest]
            pod.append(subprocess.Popen(command, env=settings, start_new_session=True))
        print(f"local_pod: pids {' '.join(str(process.pid) for process in pod)}", file=sys.stderr, flush=True)
        return watch(pod, flags.grace)
    finally:
        kill(pod)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

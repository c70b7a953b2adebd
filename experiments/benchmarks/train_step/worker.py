"""One side of the benchmark in a separate process, which builds a model once and takes steps on request.

Requests and replies are JSON objects, one per line. Requests come on standard input. Replies go to the original standard
output; everything that a library prints goes to standard error instead.

    {"build": {row}, "options": {}}  ->  {"seconds", "parameters", "device", "platform", "versions", ...}
    {"go": n}                        ->  {"seconds": [per step], "cpu_seconds", "loss", "process_seconds"}
    {"end": true}                    ->  {"peak_bytes", "device_peak_bytes"}; then the process ends

`cpu_seconds` is the processor time of those steps over all threads, `process_seconds` that of the process since it began.
"""

from __future__ import annotations

import abc
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.train_step.workload import Row, batches

# The same for both sides. glibc's allocator hands large buffers back to the kernel after each step and takes a page fault
# for every page of the next one, which costs PyTorch and XLA up to half of a CPU step's time: keep them instead.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # both sides share one GPU
    "TRANSFORMERS_VERBOSITY": "error",
}


class Side(abc.ABC):
    """A model and its training step.

    Attributes:
      about: contents of the build reply in addition to its time: parameters, device, platform, versions.
      wait_each: whether to wait for the device after each step (CPU) or only after the last one of a turn.
    """

    about: dict[str, Any]
    wait_each: bool

    @abc.abstractmethod
    def prepare(self, batch: dict[str, Any]) -> Any:
        """Do the host work that a data loader would do during the steps; not timed."""

    @abc.abstractmethod
    def step(self, prepared: Any) -> None:
        """Move the batch to the device and take one optimizer step; may return before it is done."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until all steps so far are done."""

    @abc.abstractmethod
    def loss(self) -> float:
        """Return the loss in nats of the latest step or steps."""

    def device_peak_bytes(self) -> int | None:
        """Return the peak memory of the accelerator, if there is one."""
        return None


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def take_steps(side: Side, prepared: list[Any]) -> dict[str, Any]:
    """Take a step on each batch; return the seconds of each step, or their mean if only the last one is waited for."""
    seconds = []
    cpu, start = time.process_time(), time.perf_counter()
    for batch in prepared:
        begin = time.perf_counter()
        side.step(batch)
        if side.wait_each:
            side.wait()
            seconds.append(time.perf_counter() - begin)
    side.wait()
    if not side.wait_each:
        seconds = [(time.perf_counter() - start) / len(prepared)]
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "loss": side.loss()}


def serve(build: Callable[[Row, dict[str, Any]], Side]) -> None:
    """Run the worker's main loop."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side, stream = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            begin = time.perf_counter()
            row = Row(**request["build"])
            side, stream = build(row, request["options"]), batches(row)
            reply = {"seconds": time.perf_counter() - begin, "process_seconds": time.process_time(), **side.about}
        elif "go" in request:
            reply = take_steps(side, [side.prepare(next(stream)) for _ in range(request["go"])])
            reply["process_seconds"] = time.process_time()
        else:
            reply = {"peak_bytes": peak_resident_bytes(), "device_peak_bytes": side and side.device_peak_bytes()}
        replies.write(json.dumps(reply) + "\n")
        if "end" in request:
            return


class Worker:
    """The parent's end: starts the process of a side and sends it requests."""

    def __init__(self, module: str, keep_freed_memory: bool = True, root: pathlib.Path | None = None) -> None:
        """Start the process.

        Args:
          module: the side's module, in this folder.
          keep_freed_memory: set `ALLOCATOR`, for faster steps, but a resident memory that shows their needs less well.
          root: root of another checkout of the repository, to run its code.
        """
        root = (root or pathlib.Path(__file__).parents[3]).resolve()
        command = [sys.executable, "-m", f"experiments.benchmarks.train_step.{module}"]
        pipe, environment = subprocess.PIPE, os.environ | ENVIRONMENT | (ALLOCATOR if keep_freed_memory else {})
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root, env=environment)

    def request(self, **message: Any) -> dict[str, Any]:
        """Send one request and wait for the reply.

        Raises:
          RuntimeError: the process died; its error is on standard error.
        """
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} died with code {self.process.wait()} at {message}")
        return json.loads(line)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

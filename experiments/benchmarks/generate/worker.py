"""One side of the benchmark in a separate process, which builds a model once and generates on request.

Requests and replies are JSON objects, one per line, as in train_step/worker.py:

    {"build": {row}, "options": {}}  ->  {"seconds", "parameters", "versions", ...}
    {"go": n}                        ->  {"seconds": [per call], "cpu_seconds", "process_seconds", "tokens": [last call's first row]}
    {"end": true}                    ->  {"peak_bytes"}; then the process ends
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.generate.workload import Row, prompts
from experiments.benchmarks.train_step.worker import ALLOCATOR, ENVIRONMENT, peak_resident_bytes

Generate = Callable[[np.ndarray], np.ndarray]  # prompts [B, PROMPT] -> prompts with new tokens


def serve(build: Callable[[Row, dict[str, Any]], tuple[Generate, dict[str, Any]]]) -> None:
    """Run the worker's main loop. `build` returns the generating function and a description of it."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    row, generate, call = None, None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            begin = time.perf_counter()
            row = Row(**request["build"])
            generate, about = build(row, request["options"])
            reply = {"seconds": time.perf_counter() - begin, **about}
        elif "go" in request:
            seconds, cpu = [], time.process_time()
            for _ in range(request["go"]):
                ids, call = prompts(row, call), call + 1
                start = time.perf_counter()
                output = generate(ids)
                seconds.append(time.perf_counter() - start)
            reply = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "tokens": output[0].tolist()}
        else:
            reply = {"peak_bytes": peak_resident_bytes()}
        replies.write(json.dumps(reply | {"process_seconds": time.process_time()}) + "\n")
        if "end" in request:
            return


class Worker:
    """The parent's end: starts the process of a side and sends it requests."""

    def __init__(self, module: str) -> None:
        root = pathlib.Path(__file__).resolve().parents[3]
        command = [sys.executable, "-m", f"experiments.benchmarks.generate.{module}"]
        pipe, environment = subprocess.PIPE, os.environ | ENVIRONMENT | ALLOCATOR
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

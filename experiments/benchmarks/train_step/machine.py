"""The machine and the software of a measurement, and how busy it is."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

from experiments.benchmarks.train_step.worker import ALLOCATOR

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "GLIBC_TUNABLES")


def busy_seconds() -> float | None:
    """Return the processor seconds that the machine has been busy or has had taken away since it started (Linux)."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def describe_device() -> dict[str, str]:
    """Return platform and kind of JAX's device, found in another process so that this one does not hold the device."""
    program = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    name, _, kind = done.stdout.strip().splitlines()[-1].partition(" ")
    return {"platform": name, "kind": kind}


def describe(device: dict[str, str]) -> dict[str, Any]:
    """Return the details that a reader needs to judge or repeat the numbers."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    git = {name: _git(*arguments) for name, arguments in _GIT.items()}
    return {
        "command": "python -m experiments.benchmarks.train_step.run " + " ".join(sys.argv[1:]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": git["commit"],
        "uncommitted_changes": bool(git["changes"]),
        "device": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ} | ALLOCATOR,
    }


_GIT = {"commit": ("rev-parse", "HEAD"), "changes": ("status", "--porcelain", "lm_research", "experiments/benchmarks")}


def _git(*arguments: str) -> str:
    root = pathlib.Path(__file__).resolve().parents[3]
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )

"""Training steps compiled for TPUs by `plan --compile`, in a process of their own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


def compiled(config: str, topology: str, folder: pathlib.Path, *flags: str, libtpu: str = "") -> dict[str, Any]:
    """Compile a shipped config with `plan --compile`, and flags of libtpu; returns the `compiled` part of its JSON."""
    command = [sys.executable, "-m", "lm_research.plan", f"--config=configs/{config}.py", f"--topology={topology}"]
    command += ["--compile", f"--json={folder / 'plan.json'}", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"LIBTPU_INIT_ARGS": libtpu} if libtpu else {}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "plan.json").read_text())["compiled"]

"""Checkpoints of several processes: each reads only its parts."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from on_two_processes import SIDE

from lm_research.config import CheckpointConfig
from lm_research.run.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_process_reads_only_its_parts_of_what_one_device_saved(tmp_path: pathlib.Path) -> None:
    """Of two arrays of 16 MiB, divided by rows and by columns: 16 MiB for each of two processes, and what the indices take."""
    numbers = np.random.default_rng(0).integers(0, 2**30, (SIDE, SIDE)).astype(np.float32) // 2**20
    store = Checkpoints(tmp_path, CheckpointConfig(), {})
    names = ("rows", "columns")
    store.save(
        {"step": jnp.int32(3), "params": {name: jnp.asarray(numbers) for name in names}, "halted": jnp.int32(-1)}
    )
    store.close()
    stored = sum(path.stat().st_size for path in (tmp_path / "checkpoints/3/state").rglob("*") if path.is_file())
    pod = [sys.executable, str(ROOT / "launch/local_pod.py"), "--devices_per_process=1", "--module=on_two_processes"]
    settings = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent)}
    done = subprocess.run([*pod, "--", str(tmp_path)], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    half = SIDE // 2
    for process in (0, 1):
        found = json.loads((tmp_path / f"read_{process}.json").read_text())
        first = process * half
        assert found["parts"] == {
            "rows": [int(numbers[first : first + half].sum(dtype=np.int64)), [first, 0]],
            "columns": [int(numbers[:, first : first + half].sum(dtype=np.int64)), [0, first]],
        }
        assert stored / 2 < found["bytes"] + 2**16 and found["bytes"] < 0.6 * stored

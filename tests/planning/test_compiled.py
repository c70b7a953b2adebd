"""The real step compiled for a TPU slice that is not present; needs the extra `plan`."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from helpers import tiny
from lm_research.errors import MeshError
from lm_research.planning import compiled
from lm_research.planning.topology import parse_topology

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_without_the_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeshError, match=r"lm_research\[plan\]"):
        compiled.topology_mesh(tiny.config("gpt2"), parse_topology("v5e:2x2"))


def test_arguments_aliased_by_results() -> None:
    header = "HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }, entry_computation_layout={}"
    assert compiled.reused_arguments(header) == 2
    assert compiled.reused_arguments("HloModule jit_step, entry_computation_layout={()->f32[]}") == 0


def test_gpus_are_refused() -> None:
    with pytest.raises(MeshError, match="are GPUs"):
        compiled.compile_step(tiny.config("gpt2"), parse_topology("h100:8"))


@pytest.mark.slow
def test_bert_compiles_for_sixteen_chips(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("libtpu")
    changes = dict(num_layers=4, hidden_size=512, num_heads=8, intermediate_size=2048, remat="none")
    flags = [f"--config.model.{name}={value}" for name, value in changes.items()]
    command = [
        sys.executable,
        "-m",
        "lm_research.plan",
        "--config=configs/bert_large.py",
        "--topology=v5e:4x4",
        "--compile",
    ]
    command += [*flags, "--effort=low", f"--json={tmp_path / 'plan.json'}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    result = plan["compiled"]
    state = sum(plan["memory"][kind] for kind in ("parameters", "optimizer"))
    assert state <= result["argument_bytes"] <= 1.1 * state  # and the batch
    assert result["reused"] == result["donated"]
    reading = result["reading"]
    assert all("fsdp" in one["axes"] for one in reading["transfers"] if one["devices"] == 16)
    assert reading["flops"] == pytest.approx(result["flops"], rel=0.1)
    assert 0 < result["cycles_mfu"] <= result["roof_mfu"] <= 1
    assert "lm_research/models/" in reading["lines"][0]["source"]

"""Budgets of shipped configs: what the TPU compiler makes of their training steps must not become slower or larger.

Needs the extra `plan`, and minutes per program. A budget is a limit, not an expectation: lower it when a program becomes better. Its
figures are those of planning/reading.py, with libtpu 0.0.52 at full effort.
"""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from helpers.compiled_plans import compiled

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a step: MFU from below (as read, not calibrated), peak memory and bytes of synchronous collectives from above.

    `flags` are further settings of the run.
    """

    config: str
    topology: str
    roof_mfu: float
    cycles_mfu: float
    peak_gib: float
    synchronous_gb: float
    flags: tuple[str, ...] = ()


XL = ("mesh.data=4", "mesh.fsdp=64", "train.accumulation_steps=1", "model.num_layers=2")
BUDGETS = (
    Budget("bert_base", "v5e:4x4", roof_mfu=0.65, cycles_mfu=0.50, peak_gib=4.0, synchronous_gb=0.05),
    Budget("bert_large", "v5e:4x4", roof_mfu=0.73, cycles_mfu=0.60, peak_gib=6.8, synchronous_gb=0.2),
    Budget("gpt2_small", "v5e:4x4", roof_mfu=0.77, cycles_mfu=0.64, peak_gib=3.2, synchronous_gb=0.35),
    Budget("gpt2_xl", "v5e:16x16", roof_mfu=0.61, cycles_mfu=0.43, peak_gib=1.1, synchronous_gb=0.38, flags=XL),
)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"{budget.config}-{budget.topology}")
def test_a_step_stays_within_its_budget(budget: Budget, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("libtpu")
    step = compiled(budget.config, budget.topology, tmp_path, *(f"--config.{flag}" for flag in budget.flags))
    assert step["reused"] == step["donated"]
    assert step["roof_mfu"] >= budget.roof_mfu
    assert step["cycles_mfu"] >= budget.cycles_mfu
    assert step["peak_bytes"] <= budget.peak_gib * GIB
    assert step["reading"]["synchronous_bytes"] <= budget.synchronous_gb * 1e9

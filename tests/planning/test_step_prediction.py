"""Exposed communication by arithmetic, and the published weak scaling of a model of 16 billion parameters."""

from __future__ import annotations

import pytest

from helpers import tiny
from lm_research.config import Config
from lm_research.planning.efficiency import efficiency
from lm_research.planning.predict import exposed
from lm_research.planning.scaling import scaling
from lm_research.planning.topology import hops, parse_topology
from lm_research.planning.traffic import TABLES, Collective
from planning.test_workload import shipped

POD, MESH = parse_topology("v5e:16x16"), {"data": 1, "fsdp": 256, "expert": 1, "context": 1, "tensor": 1}


def moved(kind: str, axis: str, link_bytes: float, network_bytes: float = 0.0) -> Collective:
    return Collective(kind, axis, "weights", 0, link_bytes, link_bytes, network_bytes)


@pytest.mark.parametrize(
    ("kind", "axis", "computing", "seconds"),
    [
        # 100 GB over 4 links of 50 GB/s take 0.5 s; of 10 layers the first has nothing to hide behind.
        ("all-gather", "fsdp", 10.0, 0.05),
        ("reduce-scatter", "fsdp", 0.2, 0.3),
        ("all-reduce", "data", 0.5, 2.0 - 0.5),
        ("all-reduce", "tensor", 10.0, 2.0),  # an axis of size 1 has one link
    ],
)
def test_what_computation_does_not_hide(kind: str, axis: str, computing: float, seconds: float) -> None:
    assert exposed(POD, MESH, (moved(kind, axis, 100e9),), computing, 10) == {axis: pytest.approx(seconds)}


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather"])
def test_programs_of_other_tpus_wait_for_collectives(kind: str) -> None:
    """100 GB over 4 links of 100 GB/s."""
    pod = parse_topology("v6e:16x16")
    assert exposed(pod, MESH, (moved(kind, "fsdp", 100e9),), 10.0, 10) == {"fsdp": pytest.approx(0.25)}


def test_nothing_hides_the_sum_of_token_tables() -> None:
    tables = Collective("all-reduce", "fsdp", TABLES, 0, 0.0, 100e9, 0.0)
    assert exposed(POD, MESH, (tables,), 10.0, 10) == {"fsdp": pytest.approx(0.5)}


def test_latency_is_that_of_the_way_to_the_farthest_device() -> None:
    """Two rings of 16: 8 + 8 links; 3 gathers of each of 10 layers."""
    assert hops(POD, MESH)["fsdp"] == 16 and hops(parse_topology("v5e:4x4"), MESH | {"fsdp": 16})["fsdp"] == 3 + 3
    gather = Collective("all-gather", "fsdp", "weights", 3, 0.0, 0.0, 0.0)
    all_but_one_layer_hidden = exposed(POD, MESH, (gather,), 1.0, 10)["fsdp"]
    assert all_but_one_layer_hidden == pytest.approx(3 * 10 * 16 * efficiency("v5e").hop / 10)


def test_slices_are_summed_over_the_network() -> None:
    pods = parse_topology("v5e:16x16", slices=2)
    parts = exposed(pods, MESH | {"data": 2}, (moved("all-reduce", "data", 0.0, 3.125e9),), 10.0, 10)
    assert parts["network"] == pytest.approx(1.0)  # 6.4 Tb/s per pod of 256 chips are 3.125 GB/s per chip


def maxtext_16b() -> Config:
    """configs/v5e/16b.sh of AI-Hypercomputer/maxtext: 4,096 wide, 64 heads of 128, 28,672 in a gated layer, 32 layers, 6 rows of 2,048."""
    model = dict(
        num_layers=32,
        hidden_size=4096,
        num_heads=64,
        head_size=128,
        intermediate_size=28672,
        remat="full",
        scan_layers=True,
    )
    return shipped("llama", model=model, train=dict(per_device_batch_size=6, accumulation_steps=1))


def test_published_weak_scaling() -> None:
    """The README there: 61.1% MFU on one pod of v5e and 54.7% on 32; the prediction is fitted to both."""
    steps = {step.topology.num_chips: step for step in scaling(maxtext_16b(), POD, 32 * 256)}
    assert list(steps) == [1, *(2**n for n in range(2, 14))]
    assert steps[256].plan and steps[256].plan.mfu == pytest.approx(0.611, rel=0.02)
    assert steps[8192].plan and steps[8192].plan.mfu == pytest.approx(0.547, rel=0.02)
    assert "slowest of 32 slices" in steps[8192].reason and "network" in steps[8192].reason
    assert "a ring of 16 and a ring of 16" in steps[256].reason and "a line of 4 and a line of 4" in steps[16].reason
    assert steps[8192].plan.mesh["data"] == 32 and "fsdp" not in steps[1].reason


def test_numbers_of_chips_that_the_mesh_cannot_use_have_an_error() -> None:
    config = tiny.config("gpt2", mesh={"tensor": 2, "preset": "fsdp"})
    steps = list(scaling(config, parse_topology("v5e:2x2"), 4))
    assert [step.plan is None for step in steps] == [True, False] and "1 devices" in steps[0].reason

"""Topologies as users write them, and the links that mesh axes get."""

from __future__ import annotations

import pytest

from lm_research.errors import MeshError
from lm_research.parallel.mesh import network_axis
from lm_research.planning.topology import links, parse_topology


def mesh(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "context": 1, "tensor": tensor}


def test_a_slice_and_a_machine() -> None:
    pod = parse_topology("v5p:8x8x16", slices=2)
    assert (pod.num_chips, pod.chips_per_slice, str(pod)) == (2048, 1024, "2 x v5p:8x8x16")
    seventh = parse_topology("tpu7x:4x4x4")
    assert (seventh.num_chips, seventh.num_devices, seventh.device.flops) == (64, 128, 2307e12 / 2)
    machine = parse_topology("H200:8")
    assert (machine.num_chips, machine.platform, pod.platform, str(machine)) == (8, "gpu", "tpu", "h200:8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5:4x4", "'v5' is not a supported chip"),
        ("v5ee:4x4", "Did you mean 'v5e'"),
        ("v5e", "not a number of chips"),
        ("v5e:4x0", "not a number of chips"),
        ("v5e:4x", "not a number of chips"),
        ("v5e:100000x1", "not a number of chips"),
        ("v5e:4x4x4", "torus of 2 dimensions"),
        ("h100:2x4", "counted in one dimension"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        parse_topology(text)
    with pytest.raises(MeshError, match="--slices=0"):
        parse_topology("v5e:4x4", slices=0)


def test_a_full_ring_has_two_links_and_a_line_one() -> None:
    pod, part = parse_topology("v5e:16x16"), parse_topology("v5e:4x4")
    assert links(pod, mesh(1, 256, 1))["fsdp"] == 4 * 50e9  # both dimensions, both ways
    assert links(part, mesh(1, 16, 1))["fsdp"] == 2 * 50e9
    assert links(pod, mesh(1, 16, 16)) == {"tensor": 100e9, "fsdp": 100e9, "context": 50e9, "data": 50e9}
    assert links(pod, mesh(1, 64, 4))["tensor"] == 50e9  # a quarter of a ring
    assert links(parse_topology("v5p:4x4x4"), mesh(1, 64, 1))["fsdp"] == 6 * 100e9
    # A tpu7x chip is two devices, which share its links.
    assert links(parse_topology("tpu7x:4x4x4"), mesh(1, 128, 1))["fsdp"] == 6 * 50e9
    assert links(parse_topology("tpu7x:4x4x4"), mesh(1, 64, 2)) == {
        "tensor": 50e9,
        "fsdp": 6 * 50e9,
        "context": 50e9,
        "data": 50e9,
    }
    assert links(parse_topology("h100:8"), mesh(1, 4, 2))["tensor"] == 450e9


def test_slices_are_on_the_outermost_axis() -> None:
    pod = parse_topology("v5e:4x4", slices=4)
    assert network_axis(mesh(4, 16, 1), pod.slices) == "data"
    assert network_axis(mesh(1, 64, 1), pod.slices) == "fsdp"
    assert network_axis(mesh(4, 4, 1), parse_topology("v5e:4x4").slices) is None
    with pytest.raises(MeshError, match="--config.mesh.data=4"):
        network_axis(mesh(2, 32, 1), pod.slices)

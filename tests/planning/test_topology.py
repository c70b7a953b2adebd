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


@pytest.mark.parametrize(
    ("topology", "rings"),
    [
        # docs.cloud.google.com/tpu/docs/v5e, v6e: only 16 x 16, the pod, closes both sides.
        ("v5e:2x2", ""),
        ("v5e:4x8", ""),
        ("v5e:8x16", "16"),
        ("v5e:16x16", "16 16"),
        ("v6e:8x8", ""),
        ("v6e:8x16", "16"),
        # v4, v5p, tpu7x: whole cubes of 4 x 4 x 4 (Jouppi et al. 2023, section 2.2).
        ("v5p:2x2x4", ""),
        ("v5p:2x4x4", ""),
        ("v5p:4x4x4", "4 4 4"),
        ("v5p:4x4x8", "4 4 8"),
        ("v5p:8x8x16", "8 8 16"),
        ("v4:2x4x4", ""),
        ("v4:4x4x4", "4 4 4"),
        ("tpu7x:2x4x4", ""),
        ("tpu7x:4x8x8", "4 8 8"),
    ],
)
def test_rings_that_the_hardware_closes(topology: str, rings: str) -> None:
    one = parse_topology(topology)
    closed = [side for number, side in enumerate(one.shape) if one.chip.closes(one.shape, number)]
    assert closed == [int(side) for side in rings.split()]


@pytest.mark.parametrize(
    ("topology", "sizes", "axis", "expected"),
    [
        ("v5e:16x16", (1, 256, 1), "fsdp", 4 * 50),  # two rings, two links of 50 GB/s each
        ("v5e:4x4", (1, 16, 1), "fsdp", 2 * 50),  # two lines
        ("v5e:8x16", (1, 128, 1), "fsdp", (1 + 2) * 50),
        ("v5e:16x16", (1, 16, 16), "tensor", 2 * 50),
        ("v5e:16x16", (1, 16, 16), "fsdp", 2 * 50),
        ("v5e:16x16", (1, 64, 4), "tensor", 50),  # a quarter of a ring
        ("v6e:16x16", (4, 64, 1), "fsdp", (2 + 1) * 100),  # a whole side and a quarter of the other
        ("v5p:4x4x4", (1, 64, 1), "fsdp", 6 * 100),
        ("v5p:2x4x4", (1, 32, 1), "fsdp", 3 * 100),
        ("v5p:2x2x4", (1, 4, 4), "tensor", 100),
        ("v4:4x4x8", (4, 32, 1), "fsdp", 4 * 50),
        # 128 devices in pairs: the 6 links of a chip serve both; 6 links between the two
        ("tpu7x:4x4x4", (1, 128, 1), "fsdp", 6 * 100 / 2),
        ("tpu7x:4x4x4", (1, 64, 2), "tensor", 6 * 100),
        ("tpu7x:4x4x4", (1, 64, 2), "fsdp", 6 * 100 / 2),
        ("h100:8", (1, 4, 2), "tensor", 450),
    ],
)
def test_links_of_an_axis(topology: str, sizes: tuple[int, int, int], axis: str, expected: float) -> None:
    assert links(parse_topology(topology), mesh(*sizes))[axis] == expected * 1e9


def test_a_chip_of_two_devices() -> None:
    """docs.cloud.google.com/tpu/docs/tpu7x: JAX has two devices per chip; 4 x 4 x 4 chips are 128."""
    pod = parse_topology("tpu7x:4x4x4", slices=2)
    assert (pod.num_chips, pod.num_devices) == (128, 256)
    assert (pod.chip.device.flops, pod.chip.device.hbm_bandwidth) == (2307e12 / 2, 7380e9 / 2)
    assert parse_topology("v5p:4x4x4").num_devices == 64


def test_slices_are_on_the_outermost_axis() -> None:
    pod = parse_topology("v5e:4x4", slices=4)
    assert network_axis(mesh(4, 16, 1), pod.slices) == "data"
    assert network_axis(mesh(1, 64, 1), pod.slices) == "fsdp"
    assert network_axis(mesh(4, 4, 1), parse_topology("v5e:4x4").slices) is None
    with pytest.raises(MeshError, match="--config.mesh.data=4"):
        network_axis(mesh(2, 32, 1), pod.slices)

"""Shapes of meshes, and refusals that show the arithmetic."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lm_research.config import MeshConfig
from lm_research.errors import MeshError
from lm_research.parallel.mesh import AXES, make_mesh, mesh_shape, named_mesh


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [
        ({}, 1, (1, 1, 1, 1, 1)),
        ({}, 8, (8, 1, 1, 1, 1)),
        ({"preset": "fsdp"}, 8, (1, 8, 1, 1, 1)),
        ({"tensor": 2}, 8, (4, 1, 1, 1, 2)),
        ({"preset": "fsdp", "tensor": 2}, 8, (1, 4, 1, 1, 2)),
        ({"preset": "fsdp", "data": 2}, 8, (2, 4, 1, 1, 1)),
        ({"preset": "fsdp", "data": 2, "tensor": 2}, 8, (2, 2, 1, 1, 2)),
        ({"fsdp": 4}, 8, (2, 4, 1, 1, 1)),
        ({"fsdp": 4, "tensor": 2}, 8, (1, 4, 1, 1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, (2, 2, 1, 1, 2)),
        ({"data": 1, "fsdp": 1, "tensor": 1}, 1, (1, 1, 1, 1, 1)),
        ({"data": 3}, 3, (3, 1, 1, 1, 1)),
        ({"preset": "fsdp", "fsdp": 4}, 4, (1, 4, 1, 1, 1)),
        ({"tensor": 8}, 256, (32, 1, 1, 1, 8)),
        ({"context": 4}, 8, (2, 1, 1, 4, 1)),
        ({"preset": "fsdp+tensor"}, 256, (1, 64, 1, 1, 4)),
        ({"preset": "fsdp+tensor", "tensor": 8}, 256, (1, 32, 1, 1, 8)),
        ({"preset": "fsdp+context", "data": 2}, 32, (2, 4, 1, 4, 1)),
        ({"preset": "fsdp+context+tensor"}, 8, (1, 1, 1, 4, 2)),
        ({"preset": "dp+tensor"}, 6, (3, 1, 1, 1, 2)),
        ({"expert": 4, "tensor": 2}, 16, (2, 1, 4, 1, 2)),
        ({"preset": "shard_map"}, 8, (8, 1, 1, 1, 1)),
    ],
)
def test_the_presets_axis_takes_the_remaining_devices(given: dict, devices: int, expected: tuple) -> None:
    assert mesh_shape(MeshConfig(**given), devices) == expected


@pytest.mark.parametrize(
    ("given", "devices", "words"),
    [
        (
            {"tensor": 3},
            8,
            "mesh: 8 devices cannot be divided by the 3 that data=1 x fsdp=1 x context=1 x tensor=3 require. "
            "Choose sizes whose product divides 8.",
        ),
        (
            {"preset": "fsdp", "data": 4, "tensor": 4},
            8,
            "mesh: 8 devices cannot be divided by the 16 that data=4 x fsdp=1 x context=1 x tensor=4 require. "
            "Choose sizes whose product divides 8.",
        ),
        (
            {"data": 4},
            8,
            "mesh: data=4 x fsdp=1 x context=1 x tensor=1 = 4 devices, but this machine has 8. Set mesh.data=0 to use the remaining "
            "devices, or choose sizes whose product is 8.",
        ),
        (
            {"preset": "fsdp", "data": 2, "fsdp": 2, "tensor": 4},
            8,
            "mesh: data=2 x fsdp=2 x context=1 x tensor=4 = 16 devices, but this machine has 8. Set mesh.fsdp=0 to use the remaining "
            "devices, or choose sizes whose product is 8.",
        ),
        (
            {"preset": "shard_map", "tensor": 2},
            8,
            "mesh: the preset shard_map has only the data axis, but the sizes are data=4 x fsdp=1 x context=1 x tensor=2. "
            "Remove the other sizes, or set --config.mesh.preset=dp.",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given: dict, devices: int, words: str) -> None:
    with pytest.raises(MeshError) as refused:
        mesh_shape(MeshConfig(**given), devices)
    assert str(refused.value) == words


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that arranging a mesh reads: two slices of a described TPU would look like this."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "described"
    device_kind: str = "chip"


def test_slices_are_the_outermost_part_of_the_data_axis_or_of_fsdp() -> None:
    chips = [Chip(number, number % 2) for number in range(8)]  # listed alternately, so the order must be established
    for given, axis in (({"data": 4, "tensor": 2}, 0), ({"preset": "fsdp", "tensor": 2}, 1)):
        mesh = make_mesh(MeshConfig(**given), chips)
        slice_of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
        first, second = np.split(slice_of, 2, axis=axis)
        assert (first == first.flat[0]).all() and (second == 1 - first.flat[0]).all()
        assert sorted(chip.id for chip in mesh.devices.flat) == list(range(8))
    with pytest.raises(MeshError, match="data=1 x fsdp=1 x context=1 x tensor=8 cannot be divided into 2 slices"):
        make_mesh(MeshConfig(tensor=8), chips)
    with pytest.raises(MeshError, match="config.mesh.slices=4 does not match the 8 devices, which form 2 slices"):
        make_mesh(MeshConfig(slices=4), chips)


def test_one_device_is_also_a_mesh() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES and dict(mesh.shape) == dict.fromkeys(AXES, 1)
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize("text", ["dp", "fsdp+tensor", "fsdp=1,tensor=1", " data = 1 "])
def test_meshes_have_names(text: str) -> None:
    assert named_mesh(text).axis_names == AXES and named_mesh(text).size == len(jax.devices())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensors=2", "Did you mean 'tensor'"),
        ("fsdp=two", "neither AXIS=DEVICES"),
        ("", "neither"),
        ("tensor=64", "64 that data=1"),
    ],
)
def test_invalid_mesh_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(MeshError, match=words):
        named_mesh(text)

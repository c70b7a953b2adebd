"""The device mesh of a run.

Its five axes, outermost first: `data` divides the batch and replicates the model; `fsdp` divides the batch, parameters and optimizer
state (ZeRO-3, Rajbhandari et al. 2019); `expert` divides the batch, and the experts of mixtures (Lepikhin et al. 2020); `context` divides the positions of each sequence (ring attention, Liu et al. 2023); `tensor`
divides heads, feed-forward and vocabulary (Shoeybi et al. 2019). A single device is the mesh (1, 1, 1, 1, 1), without a special case.

Several slices (TPU pods joined by the data-center network) form the outermost part of the data axis, or of fsdp if the data axis has
size 1, so that only one sum of gradients per step crosses the slow network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from lm_research.common.documents import whole_number
from lm_research.config import MeshConfig
from lm_research.errors import MeshError, suggest

AXES = ("data", "fsdp", "expert", "context", "tensor")
# Size of an axis that a preset names and that has no size: the chips of one TPU host, which have the shortest links.
NAMED_SIZE = 4


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Return the sizes of AXES for a number of devices.

    If the preset's first axis has no size, it takes the devices that the other axes leave.

    Raises:
      MeshError: the product of the sizes is not the number of devices, or the preset does not have such an axis.
    """
    first, *named = config.preset.split("+")
    free = {"dp": "data", "shard_map": "data", "fsdp": "fsdp"}[first]
    sizes = {axis: getattr(config, axis) for axis in AXES}
    for axis in named:
        left = num_devices // math.prod(size or 1 for size in sizes.values())
        sizes[axis] = sizes[axis] or math.gcd(NAMED_SIZE, left)
    if not sizes[free]:
        others = math.prod(size or 1 for axis, size in sizes.items() if axis != free)
        if num_devices % others:
            raise MeshError(
                f"mesh: {num_devices} devices cannot be divided by the {others} that {describe_mesh(list(sizes.values()))} require. "
                f"Choose sizes whose product divides {num_devices}."
            )
        sizes[free] = num_devices // others
    shape = tuple(sizes[axis] or 1 for axis in AXES)
    if math.prod(shape) != num_devices:
        raise MeshError(
            f"mesh: {describe_mesh(shape)} = {math.prod(shape)} devices, but this machine has {num_devices}. "
            f"Set mesh.{free}=0 to use the remaining devices, or choose sizes whose product is {num_devices}."
        )
    if config.preset == "shard_map" and shape[0] != num_devices:
        raise MeshError(
            f"mesh: the preset shard_map has only the data axis, but the sizes are {describe_mesh(shape)}. Remove the other sizes, "
            "or set --config.mesh.preset=dp."
        )
    return shape


# Mesh of devices, or only the names and sizes of its axes.
AnyMesh = Mesh | AbstractMesh


def describe_mesh(shape: Sequence[int]) -> str:
    """Describe a mesh as `data=2 x fsdp=1 x context=1 x tensor=4`; 0 counts as 1, and an expert axis of size 1 is left out."""
    sizes = zip(AXES, shape, strict=True)
    return " x ".join(f"{axis}={size or 1}" for axis, size in sizes if axis != "expert" or (size or 1) > 1)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh over all devices (or the given ones), with automatic (GSPMD) axes."""
    devices = list(devices if devices is not None else jax.devices())
    return arrange_devices(mesh_shape(config, len(devices)), devices, num_slices(config, devices))


def named_mesh(text: str) -> Mesh:
    """Make the mesh over all devices from axis sizes ("fsdp=4,tensor=2") or the name of a preset ("fsdp+tensor").

    Raises:
      MeshError: the text is neither, or the devices cannot form the mesh.
    """
    presets = next(field.metadata["choices"] for field in fields(MeshConfig) if field.name == "preset")
    if text in presets:
        return make_mesh(MeshConfig(preset=text))
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        number = whole_number(size)
        if axis not in AXES or not number:
            raise MeshError(
                f"mesh: {part!r} is neither AXIS=DEVICES, as in fsdp=4,tensor=2, nor is it a preset. "
                f"{suggest(axis, (*AXES, *presets))}"
            )
        sizes[axis] = number
    return make_mesh(MeshConfig(**sizes))


def num_slices(config: MeshConfig, devices: Sequence[jax.Device]) -> int:
    """Return the number of slices that the devices form; raise a MeshError if config.mesh.slices does not match."""
    found = len({getattr(device, "slice_index", None) for device in devices})
    slices = config.slices or found
    if found not in (1, slices) or len(devices) % slices:
        raise MeshError(
            f"config.mesh.slices={slices} does not match the {len(devices)} devices, which form {found} slice{'s' * (found > 1)}. "
            "Set mesh.slices=0 to detect the number."
        )
    return slices


def arrange_devices(shape: tuple[int, ...], devices: Sequence[jax.Device], slices: int = 1) -> Mesh:
    """Arrange devices so that each axis has the shortest links.

    Args:
      shape: sizes of AXES, whose product is the number of devices.
      devices: devices of the mesh, in any order.
      slices: number of groups of devices that only the slow network connects.

    Raises:
      MeshError: no axis can be divided into the slices.
    """
    crossing = network_axis(dict(zip(AXES, shape, strict=True)), slices)
    if crossing is None or getattr(devices[0], "slice_index", None) is None:  # already ordered by slice
        order = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        across = tuple(slices if axis == crossing else 1 for axis in AXES)
        inside = tuple(size // count for size, count in zip(shape, across, strict=True))
        order = mesh_utils.create_hybrid_device_mesh(inside, across, devices=devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(order), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def network_axis(mesh: Mapping[str, int], slices: int) -> str | None:
    """Return the mesh axis that spans slices, or None for a single slice.

    It is the data axis if its size is a multiple of the slices, else fsdp.

    Raises:
      MeshError: neither axis can be divided into the slices.
    """
    if slices == 1:
        return None
    if mesh["data"] % slices == 0:
        return "data"
    if mesh["data"] == 1 and mesh["fsdp"] % slices == 0:
        return "fsdp"
    raise MeshError(
        f"mesh: {describe_mesh([mesh.get(axis, 1) for axis in AXES])} cannot be divided into {slices} slices: the size of the data axis (or of "
        f"fsdp if data is 1) must be a multiple of them. Set for example --config.mesh.data={slices}."
    )

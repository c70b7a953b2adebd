"""The device mesh of a run.

Four axes, outermost first: `data` copies the model, `fsdp` also copies the computation but divides parameters and optimizer
state (ZeRO-3, Rajbhandari et al. 2019), `context` divides the positions of each row (ring attention, Liu et al. 2023),
`tensor` divides heads, feed-forward and vocabulary (Shoeybi et al. 2019). One device is the mesh (1, 1, 1, 1); nothing else in
the code treats it specially.

Where the devices are several slices (TPU pods joined by the data-center network) the slices are the outermost part of the data
axis, or of fsdp where nothing is copied: what crosses the slow network is one sum of gradients a step.
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

AXES = ("data", "fsdp", "context", "tensor")
# Devices of an axis that a preset names and that has no size: the chips of one TPU host, whose links are the shortest.
NAMED_SIZE = 4


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Sizes of AXES for a number of devices.

    The preset's first axis takes what the given sizes leave over when it has no size of its own.

    Raises:
      MeshError: the sizes do not multiply to the number of devices, or the preset has no such axis.
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
                f"mesh: {num_devices} devices cannot be divided by the {others} that {describe_mesh(list(sizes.values()))} ask for. "
                f"Choose sizes whose product divides {num_devices}."
            )
        sizes[free] = num_devices // others
    shape = tuple(sizes[axis] or 1 for axis in AXES)
    if math.prod(shape) != num_devices:
        raise MeshError(
            f"mesh: {describe_mesh(shape)} = {math.prod(shape)} devices, but this machine has {num_devices}. "
            f"Leave mesh.{free}=0 to take what is left over, or choose sizes whose product is {num_devices}."
        )
    if config.preset == "shard_map" and shape[0] != num_devices:
        raise MeshError(
            f"mesh: the preset shard_map has the data axis alone, but {describe_mesh(shape)} is asked for. Leave the other sizes "
            "out, or set --config.mesh.preset=dp."
        )
    return shape


# A mesh of devices, or only the names and sizes of its axes.
AnyMesh = Mesh | AbstractMesh


def describe_mesh(shape: Sequence[int]) -> str:
    """Describe a mesh as `data=2 x fsdp=1 x context=1 x tensor=4`; 0 counts as 1."""
    return " x ".join(f"{axis}={size or 1}" for axis, size in zip(AXES, shape, strict=True))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or the given ones), with automatic (GSPMD) axes."""
    devices = list(devices if devices is not None else jax.devices())
    return arrange_devices(mesh_shape(config, len(devices)), devices, num_slices(config, devices))


def named_mesh(text: str) -> Mesh:
    """The mesh over all devices that a text names: sizes of axes ("fsdp=4,tensor=2") or a preset ("fsdp+tensor").

    Raises:
      MeshError: it names neither, or a mesh that cannot be.
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
    """How many slices the devices are; raises a MeshError if the config counts others."""
    found = len({getattr(device, "slice_index", None) for device in devices})
    asked = config.slices or found
    if found not in (1, asked) or len(devices) % asked:
        raise MeshError(
            f"config.mesh.slices={asked}, but the {len(devices)} devices are {found} slice{'s' * (found > 1)} and not so many "
            "of equal size. Leave mesh.slices=0 to take what is found."
        )
    return asked


def arrange_devices(shape: tuple[int, ...], devices: Sequence[jax.Device], slices: int = 1) -> Mesh:
    """Devices in the order that gives each axis the shortest links.

    Args:
      shape: sizes of AXES, whose product is the number of devices.
      slices: groups of devices that only the slow network joins.

    Raises:
      MeshError: no axis can be divided into the slices.
    """
    crossing = network_axis(dict(zip(AXES, shape, strict=True)), slices)
    if crossing is None or getattr(devices[0], "slice_index", None) is None:  # these lie slice by slice as they are
        order = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        across = tuple(slices if axis == crossing else 1 for axis in AXES)
        inside = tuple(size // count for size, count in zip(shape, across, strict=True))
        order = mesh_utils.create_hybrid_device_mesh(inside, across, devices=devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(order), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def network_axis(mesh: Mapping[str, int], slices: int) -> str | None:
    """The mesh axis that crosses from slice to slice, or None with one slice.

    The slices are the outermost part of the device order: of the data axis if it has as many entries, else of fsdp.

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
        f"mesh: {describe_mesh([mesh[axis] for axis in AXES])} cannot be laid over {slices} slices: the data axis (or, without one, "
        f"fsdp) must be a multiple of them. Set for example --config.mesh.data={slices}."
    )

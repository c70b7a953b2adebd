"""The device mesh of a run.

Three axes, outermost first: `data` copies the model, `fsdp` also copies the computation but divides parameters
and optimizer state (ZeRO-3, Rajbhandari et al. 2019), `tensor` divides heads, feed-forward and vocabulary
(Shoeybi et al. 2019). One device is the mesh (1, 1, 1); nothing else in the code treats it specially.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from lm_research.config import MeshConfig
from lm_research.errors import MeshError

AXES = ("data", "fsdp", "tensor")


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of the axes (data, fsdp, tensor) for a number of devices.

    The preset's axis takes what the given sizes leave over when it has no size of its own.

    Raises:
      MeshError: the sizes do not multiply to the number of devices.
    """
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    free = {"dp": "data", "fsdp": "fsdp"}[config.preset]
    if not sizes[free]:
        others = 1
        for axis, size in sizes.items():
            others *= 1 if axis == free else size or 1
        if num_devices % others:
            raise MeshError(
                f"mesh: {num_devices} devices cannot be divided by the {others} that "
                f"data={config.data or 1} x fsdp={config.fsdp or 1} x tensor={config.tensor} ask for (0 counts as 1 here). "
                f"Choose sizes whose product divides {num_devices}."
            )
        sizes[free] = num_devices // others
    shape = tuple(sizes[axis] or 1 for axis in AXES)
    product = shape[0] * shape[1] * shape[2]
    if product != num_devices:
        raise MeshError(
            f"mesh: data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} = {product} devices, but this machine has "
            f"{num_devices}. Leave mesh.{free}=0 to take what is left over, or choose sizes whose product is {num_devices}."
        )
    return shape


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or the given ones), with automatic (GSPMD) axes."""
    devices = list(devices if devices is not None else jax.devices())
    shape = mesh_shape(config, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)

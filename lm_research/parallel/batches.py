"""Conversion between the rows of this host and global arrays on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lm_research.config import Config, replace
from lm_research.errors import MeshError
from lm_research.parallel.mesh import AXES, AnyMesh, mesh_shape
from lm_research.parallel.rules import RULES, batch_sharding, batch_shards


def resolve_batch(config: Config, num_devices: int) -> Config:
    """Set train.batch_size from train.per_device_batch_size, if that is set; raise a MeshError like `mesh_shape`."""
    train = config.train
    if not train.per_device_batch_size:
        return config
    shape = dict(zip(AXES, mesh_shape(config.mesh, num_devices), strict=True))
    size = train.per_device_batch_size * batch_shards(shape) * train.accumulation_steps
    return replace(config, train={"batch_size": size, "per_device_batch_size": 0})


def check_batch(mesh: AnyMesh, batch_size: int, accumulation_steps: int, length: int) -> None:
    """Raise a MeshError unless each device gets the same number of rows, and of their positions, of every micro-batch."""
    num_shards = batch_shards(mesh.shape)
    rows = batch_size // accumulation_steps
    if rows % num_shards:
        divided = [axis for axis in RULES["batch"] if axis != "expert" or mesh.shape[axis] > 1]
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in divided)
        parts = f"train.batch_size={batch_size} / train.accumulation_steps={accumulation_steps}"
        raise MeshError(
            f"mesh: a micro-batch of {rows} examples ({parts}) cannot be divided equally over {num_shards} devices "
            f"({axes}). Make train.batch_size a multiple of "
            f"{num_shards * accumulation_steps}."
        )
    parts = mesh.shape["context"]
    if length % parts:
        raise MeshError(
            f"mesh: rows of {length} positions (data.max_length) cannot be divided over context={parts} devices ({length} = "
            f"{length // parts} x {parts} + {length % parts}). Change mesh.context or data.max_length."
        )


def local_rows(mesh: Mesh, num_rows: int) -> slice:
    """Return the rows of a [num_rows, ...] global batch that this process's devices need.

    They are contiguous, because the axes that divide the batch are outermost in the mesh.
    """
    spans = batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
    starts = [span[0].indices(num_rows) for span in spans if span is not None]
    return slice(min(start for start, _, _ in starts), max(stop for _, stop, _ in starts))


def to_host(arrays: Any) -> Any:
    """Copy arrays to NumPy, complete in every process, however they are sharded."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


def to_global(mesh: Mesh, batch: dict[str, np.ndarray], leading: int = 0) -> dict[str, jax.Array]:
    """Make global arrays, divided over data and fsdp, from this process's rows.

    Args:
      mesh: the run's mesh.
      batch: arrays [B, ...] (`leading=0`) or [A, B, ...] (`leading=1`) with the rows of `local_rows`.
      leading: number of axes before the batch axis.
    """
    sharding = batch_sharding(mesh, leading)

    def place(rows: np.ndarray) -> Any:
        return jax.make_array_from_process_local_data(sharding, rows)

    return {name: place(rows) for name, rows in batch.items()}

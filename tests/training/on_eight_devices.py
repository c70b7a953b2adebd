"""Run by test_meshes.py in a separate process with eight simulated devices: `on_eight_devices.py FROM TO`.

Restore the checkpoint of the run directory FROM onto several meshes, save it again from the last one to TO, and print
its results as JSON.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm_research.config import CheckpointConfig, MeshConfig
from lm_research.models.digest import digest_arrays, finish_digests, join_digests, start_digests
from lm_research.parallel.mesh import make_mesh
from lm_research.run.checkpoint import Checkpoints

SHAPES = {"data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "fsdp 4, tensor 2": (1, 4, 2), "2, 2, 2": (2, 2, 2)}


def divided(mesh: Mesh, x: jax.ShapeDtypeStruct) -> NamedSharding:
    """Divide the first axes over fsdp and tensor where possible, and replicate the rest."""
    axes = [
        axis if size and size % mesh.shape[axis] == 0 else None
        for size, axis in zip(x.shape, ("fsdp", "tensor"), strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*axes))


def main(source: str, target: str, shapes: Any) -> None:
    seen: dict[str, dict] = {}
    for name, (data, fsdp, tensor) in SHAPES.items():
        mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
        jax.set_mesh(mesh)
        shardings = jax.tree.map(lambda x, mesh=mesh: divided(mesh, x), shapes)
        store = Checkpoints(pathlib.Path(source), CheckpointConfig(), {})
        state = store.restore(shapes, shardings)
        store.close()
        for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            assert x.sharding.is_equivalent_to(sharding, x.ndim), (x.sharding, sharding)
        seen[name] = digest_arrays({key: value for key, value in state.items() if key != "halted"})
    kept = {key: value for key, value in state.items() if key != "halted"}
    assert join_digests([finish_digests(start_digests(kept))]) == seen[name]  # while all devices' mesh is set
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {8}
    store = Checkpoints(pathlib.Path(target), CheckpointConfig(), {})
    store.save(state)
    store.close()
    print(json.dumps({"devices": jax.device_count(), "digests": seen}))


def make_shapes() -> Any:
    """Shapes of the state in test_meshes.py."""

    def leaf(shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype))

    params = {"kernel": leaf((16, 24)), "odd": leaf((5, 3)), "bias": leaf((40,))}
    return {"step": leaf((), np.int32), "params": params, "mask": leaf((8, 8), bool), "halted": leaf((), np.int32)}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], make_shapes())

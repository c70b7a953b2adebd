"""Run by test_checkpoint_pods.py in a pod of two processes with a device each: `on_two_processes.py WORKDIR`.

Restore the checkpoint of the run directory, which one device saved, with the rows of one array and the columns of the other divided over the
processes, and write what each process has read to WORKDIR/read_N.json.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import tensorstore
from jax.sharding import NamedSharding, PartitionSpec

from lm_research.config import CheckpointConfig, MeshConfig
from lm_research.parallel import processes
from lm_research.parallel.mesh import make_mesh
from lm_research.run.checkpoint import Checkpoints

SIDE = 2048
SHAPES = {
    "step": jax.ShapeDtypeStruct((), np.int32),
    "params": {name: jax.ShapeDtypeStruct((SIDE, SIDE), np.float32) for name in ("rows", "columns")},
    "halted": jax.ShapeDtypeStruct((), np.int32),
}
SPECS = {"rows": PartitionSpec("fsdp"), "columns": PartitionSpec(None, "fsdp")}


def bytes_read() -> int:
    """The bytes that TensorStore has read from files."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def main(workdir: pathlib.Path) -> None:
    with processes.joined(workdir):
        mesh = make_mesh(MeshConfig(preset="fsdp"))
        jax.set_mesh(mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        shardings = {
            "step": everywhere,
            "params": {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()},
            "halted": everywhere,
        }
        with Checkpoints(workdir, CheckpointConfig(), {}) as store:
            state = store.restore(SHAPES, shardings)
            store.close()
        parts = {name: x.addressable_shards[0] for name, x in state["params"].items()}
        sums = {
            name: [int(np.asarray(part.data).sum(dtype=np.int64)), [cut.start or 0 for cut in part.index]]
            for name, part in parts.items()
        }
        path = workdir / f"read_{jax.process_index()}.json"
        path.write_text(json.dumps({"bytes": bytes_read(), "parts": sums}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Run by test_local_tier.py in a pod of two processes with a device each: `on_two_hosts.py save|resume WORKDIR LOCAL KIND [VICTIM WRITE]`.

Save steps 1 (in the run directory), 2, 3 and 4 (locally) of a state whose arrays are divided over the processes (KIND fsdp) or replicated (dp),
or resume and write the step and the sum to WORKDIR/resumed_N.json. Process VICTIM kills itself with SIGKILL before its write number WRITE,
counted from 0, of the local files; its own and those that it takes from the other.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm_research.config import CheckpointConfig, MeshConfig
from lm_research.parallel import exchange, processes
from lm_research.parallel.mesh import make_mesh
from lm_research.run import local_shards
from lm_research.run.checkpoint import Checkpoints


def kill_at(number: int) -> None:
    """Kill this process before a write; each file is two, its content and its name."""
    count = itertools.count()

    def before(function):
        def counted(*args):
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return counted

    local_shards.write = before(local_shards.write)
    local_shards.os = type("os", (), {"replace": staticmethod(before(os.replace))})


def main(action: str, workdir: pathlib.Path, local: pathlib.Path, kind: str, *kill: str) -> None:
    with processes.joined(workdir):
        number = jax.process_index()
        mesh = make_mesh(MeshConfig(preset=kind))
        jax.set_mesh(mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        divided = NamedSharding(mesh, PartitionSpec("fsdp")) if kind == "fsdp" else everywhere
        shardings = {"step": everywhere, "params": {"a": divided, "b": divided}, "halted": everywhere}
        values = jax.jit(
            lambda step: {
                "step": step,
                "params": {"a": jax.numpy.arange(4096.0) + step, "b": jax.numpy.ones((8, 3), "bfloat16") * step},
                "halted": jax.numpy.int32(-1),
            },
            out_shardings=shardings,
        )
        shapes = jax.eval_shape(values, np.int32(0))
        config = CheckpointConfig(local_every_steps=1, local_directory=str(local / f"host{number}"))
        log: list[str] = []
        with Checkpoints(workdir, config, {"corpus.json": b"{}"}, log.append) as store:
            if action == "resume":
                state = store.resume_local(shapes, shardings, lambda *_: None)
                tier = "run directory" if state is None else "local"
                state = state or store.resume(lambda step: store.restore(shapes, shardings, step), log.append)
                total = float(jax.jit(lambda x: x["a"].sum() + x["b"].astype("float32").sum())(state["params"]))
                found = {"step": int(state["step"]), "sum": total, "tier": tier, "log": log}
                (workdir / f"resumed_{number}.json").write_text(json.dumps(found))
                store.drop_local(int(state["step"]))
                return
            store.save(values(np.int32(1)))
            store.wait()
            if kill and int(kill[0]) == number:
                kill_at(int(kill[1]))
            for step in (2, 3, 4):
                state = values(np.int32(step))
                store.save_local(state, lines=step)
                jax.tree.map(lambda x: x.delete(), state)  # as the next step does
            store._local.finish()
            print("saved", flush=True)
            exchange.wait_for_all("saved")
            os._exit(0)  # as if both had lost their machines: close() would wait, and remove the files if all is saved


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), *sys.argv[4:])

"""Run by test_recheck.py in a process with eight simulated devices, some of which are made to flip a bit; prints the results as JSON.

Arguments: a folder to work in, and the mesh. Healthy devices; device 3 always wrong in the gradient of its rows; device 5 wrong only in its first one; device 6 wrong in one
of both updates.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from helpers import few, tiny
from lm_research import config as config_lib
from lm_research.config import CheckpointConfig
from lm_research.data.sampler import BatchBuilder
from lm_research.errors import DeviceFault
from lm_research.models.digest import digest_of
from lm_research.objectives import build_objective, define
from lm_research.parallel.batches import local_rows, to_global
from lm_research.parallel.mesh import make_mesh
from lm_research.run import recheck
from lm_research.run.callbacks import StepCall
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.goodput import TimeAccount
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, state_shardings
from lm_research.training.step import jit_train_step, make_train_step

MESHES = {"dp": {}, "all": {"preset": "fsdp", "data": 2, "fsdp": 2, "tensor": 2}}
make_gradient = recheck.make_gradient


def flip(tree: Any, device: int) -> Any:
    """Flip the lowest bit of one number in this device's shard of the last float32 array."""
    leaves, structure = jax.tree.flatten(tree)
    place = max(i for i, leaf in enumerate(leaves) if leaf.dtype == np.float32 and leaf.ndim)
    parts = []
    for shard in leaves[place].addressable_shards:
        part = np.array(shard.data)
        if shard.device.id == device:
            part.reshape(-1)[:1].view(np.uint32)[:] ^= 1
        parts.append(jax.device_put(part, shard.device))
    leaves[place] = jax.make_array_from_single_device_arrays(leaves[place].shape, leaves[place].sharding, parts)
    return jax.tree.unflatten(structure, leaves)


def faulty(program: Callable, device: int, calls: Callable[[int], bool]) -> Callable:
    """Wrap the program so that the given calls, counted from 0, have such a flip."""
    count = iter(range(1_000_000))

    def run(*args: Any, **named: Any) -> Any:
        result = program(*args, **named)
        return flip(result, device) if calls(next(count)) else result

    return run


def always(call: int) -> bool:
    return True


def first(call: int) -> bool:
    return call == 0


def main(folder: str, mesh: str) -> None:
    store = tiny.store(pathlib.Path(folder), tiny.documents(seed=0, count=40))
    model = dict(
        num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, dropout_rate=0.1, attention_dropout_rate=0.1
    )
    train = dict(batch_size=16, accumulation_steps=2, num_steps=2, check_every=2)
    config = few.setting("masked_lm", "bert", model=model, train=train, mesh=MESHES[mesh])
    print(json.dumps(scenarios(config, store, pathlib.Path(folder) / "run")))


def scenarios(config: config_lib.Config, store: Any, folder: pathlib.Path) -> dict[str, Any]:
    definition, mesh = define(config, few.VOCAB), make_mesh(config.mesh)
    objective = build_objective(config, few.Words(sentinels=8), definition.arch)
    optimizer = make_optimizer(config.optimizer)
    batch = to_global(
        mesh, BatchBuilder(objective.examples(store, "train"), 16, 2, local_rows(mesh, 8), 0)(0), leading=1
    )
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    shardings = state_shardings(mesh, definition, shapes, config.mesh)
    host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    host |= {"params": tiny.random_params(definition), "halted": np.int32(-1), "step": np.int32(1)}
    checkpoints = Checkpoints(folder, CheckpointConfig(), {})
    with jax.set_mesh(mesh):

        def state():
            return jax.device_put(host, shardings)

        step = jit_train_step(
            make_train_step(objective, definition, optimizer, make_schedule(config), config), shardings
        )
        program = step.lower(state(), batch, peak=np.float32(1e-3)).compile(compiler_options=tiny.FAST_COMPILE)
        gradient = make_gradient(config, objective, definition)
        plain = digest_of(program(state(), batch, peak=np.float32(1e-3)))

        def attempt(gradient: Callable = gradient, program: Callable = program) -> Any:
            recheck.make_gradient = lambda config, objective, definition: gradient
            account = TimeAccount(time.monotonic())
            check = recheck.Recheck(config, objective, definition, mesh, folder, checkpoints, 1, account, print_nothing)
            assert check.due(2) and not check.due(1)
            call = StepCall(2, state(), batch, lambda state: program(state, batch, peak=np.float32(1e-3)))
            try:
                check.on_step_begin(call)
                new = call.program(call.state)
                check.on_step_end(2, new)
            except DeviceFault as error:
                return {"error": str(error), "passed": check.passed}
            return {"equal": digest_of(new) == plain, "passed": check.passed}

        return {
            "healthy": attempt(),
            "always": attempt(faulty(gradient, 3, always)),
            "once": attempt(faulty(gradient, 5, first)),
            "update": attempt(program=faulty(program, 6, first)),
        }


def print_nothing(text: str = "") -> None:
    return


if __name__ == "__main__":
    main(*sys.argv[1:])

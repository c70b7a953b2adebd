"""Silent data corruption: a device that computes something wrong and says nothing.

Of every `train.check_every` steps one is computed again, from the same bits, by the same program:

- the whole update twice, on the same devices. The digests of every device's part of the two new states must agree: parameters, moments
  (which have the gradient in them) and the window (which has the loss);
- where there are several devices: the loss and gradient of each device's rows, before anything is summed over devices, on that device and
  again on the next one. Of what differs more devices are asked, and the odd one is named. For this a device has the whole model, so
  divided ones must be small enough (see `_fits`).

The first finds faults that come and go. Only the second finds a device that is wrong in the same way each time, and only it can
name one of several devices by itself: after a sum over devices what one of them got wrong is in all of them. Gemini's makers
(2023, section 5.1) describe such replays.

Legend: A accumulation steps, B batch, P devices of the mesh in its order, W words of evidence.
"""

from __future__ import annotations

import collections
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm_research.common.disk import write_atomically
from lm_research.common.documents import read_json
from lm_research.config import Config
from lm_research.errors import CheckpointError, ConfigError, DeviceFault
from lm_research.models.definition import ModelDefinition
from lm_research.models.digest import digest_words
from lm_research.objectives.base import Batch, Objective
from lm_research.parallel import processes
from lm_research.parallel.batches import to_host
from lm_research.parallel.mesh import AXES
from lm_research.parallel.rules import RULES, as_batch_shard
from lm_research.run.callbacks import Callback, StepCall, every
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.goodput import TimeAccount
from lm_research.training.param_groups import make_groups
from lm_research.training.state import State, copied
from lm_research.training.step import loss_and_gradient

FILE = "checked.json"
_DETERMINISTIC = ("xla_gpu_deterministic_ops=true", "xla_gpu_exclude_nondeterministic_ops=true")

# One computation of what must not depend on where it is done: how many places on the rows were moved, and the evidence [P, W].
Run = tuple[int, np.ndarray]


class Recheck(Callback):
    """The checks of one run. Every process of it must ask at the same steps; all come to the same answer.

    Attributes:
      passed: the last step whose check found nothing, or 0.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        definition: ModelDefinition,
        mesh: Mesh,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        start: int,
        account: TimeAccount,
        log: Callable[[str], None],
    ) -> None:
        """`start`: the step that the run goes on from; `account` is charged for the checks.

        Raises:
          ConfigError: the platform's programs give other bits each time.
        """
        self._every, self._mesh, self._path, self._log = config.train.check_every, mesh, workdir / FILE, log
        self._account, self._checkpoints, flags = account, checkpoints, os.environ.get("XLA_FLAGS", "")
        if self._every and mesh.devices.flat[0].platform == "gpu" and not any(flag in flags for flag in _DETERMINISTIC):
            raise ConfigError(
                f"config.train.check_every={self._every} compares bits, and programs for GPUs add in an order that changes from one time to "
                f"the next. Set XLA_FLAGS=--{_DETERMINISTIC[0]} (steps may take longer), or --config.train.check_every=0."
            )
        self._gradient: Any = make_gradient(config, objective, definition) if self._every else None
        self._others: bool | None = None  # whether devices are compared with each other
        self._rehearsed: np.ndarray | None = None  # evidence of the step that is about to be taken
        self.passed = min(start, _read(self._path)) if self._every else 0

    def due(self, step: int) -> bool:
        """Whether the step of this number, counted from 1, is checked."""
        return every(self._every, step)

    def on_step_begin(self, call: StepCall) -> None:
        """Everything but the update that counts, of a step that is due; the state is lost, and one of the same bits takes its place.

        Raises:
          DeviceFault: devices differ.
        """
        if self.due(call.number):
            jax.block_until_ready(call.state)
            with self._account.paused("check"):
                self._rehearse(call)

    def on_step_end(self, step: int, state: State) -> None:
        """Compares the update that counts with the one of `on_step_begin`.

        Raises:
          DeviceFault: their bits differ.
        """
        if self.due(step):
            jax.block_until_ready(state)
            with self._account.paused("check"):
                self._compare_updates(step, state)

    def _rehearse(self, call: StepCall) -> None:
        if self._others is None:
            fits = _fits(call.state["params"], self._mesh.local_devices[0])
            self._others = self._mesh.size > 1 and processes.broadcast_flag(fits)
            self._log(f"train.check_every={self._every}: {self._form()}")
        if self._others:
            self._compare_devices(call)
        kept = park(call.state)
        self._rehearsed = evidence(call.program(call.state))
        call.state = unpark(kept)

    def _compare_updates(self, step: int, state: State) -> None:
        counted = evidence(state)
        differing = np.flatnonzero((counted != self._rehearsed).any(1)).tolist()
        if differing:
            self._stop(step, "the update was made twice on the same devices", differing)
        self.passed = step
        if jax.process_index() == 0:
            write_atomically(self._path, json.dumps({"step": step}) + "\n")

    def _form(self) -> str:
        if self._others:
            return "each such step is made twice, and each device's loss and gradient are computed on another one too"
        large = ": model and gradient together would take over a quarter of a device's memory" * (self._mesh.size > 1)
        return f"each such step is made twice on the same devices, and not on others{large}"

    def _compare_devices(self, call: StepCall) -> None:
        def compute(shift: int) -> tuple[int, Any]:
            return (shift, evidence(self._gradient(call.state, call.batch, np.int32(shift))))

        size, same = self._mesh.size, self._mesh.shape["context"] * self._mesh.shape["tensor"]
        runs = [compute(0), compute(1)]
        if not suspects(runs, same):
            return
        runs += [compute(shift) for shift in ((2, 3 % size) if size > 2 else (0, 1))]
        what = "the loss and gradient of the same rows were computed on different devices"
        self._stop(call.number, what, suspects(runs, same))

    def _stop(self, step: int, what: str, places: Sequence[int]) -> None:
        devices = self._mesh.devices.flat
        names = [f"{d.id} ({d.device_kind}, process {d.process_index})" for d in (devices[place] for place in places)]
        one = len(names) == 1
        if len(names) > 8:
            names = [*names[:8], f"{len(names) - 8} more"]
        hint = (
            ""
            if one
            else "; what one of them got wrong may have reached the others through a sum, so any of them may be at fault"
        )
        self._checkpoints.wait()
        raise DeviceFault(
            f"Step {step}: {what}, and the bits differ on device{'' if one else 's'} {', '.join(names)}{hint}. Nothing of this step is kept. "
            f"{way_on(self._checkpoints, self.passed)}"
        )


def way_on(checkpoints: Checkpoints, passed: int) -> str:
    """Which checkpoints are to be trusted when a check fails, and what to do; `passed`: the last step whose check found nothing."""
    sound = [step for step in checkpoints.steps if step <= passed]
    doubtful = [str(checkpoints.directory / str(step)) for step in checkpoints.steps if step > passed]
    if sound:
        words = f"Checkpoint {max(sound)} is the newest from before the last check that found nothing (step {passed})"
    else:
        words = "No checkpoint is from before a check that found nothing"
    if doubtful:
        words += f"; {', '.join(doubtful)} may hold what a faulty device computed: remove {'it' if len(doubtful) == 1 else 'them'}"
    after = f"from step {max(sound)}" if sound else "from the beginning"
    return f"{words}. Take the device or its machine out of use (the mesh may be another); the same command then goes on {after}."


def make_gradient(config: Config, objective: Objective, definition: ModelDefinition) -> Any:
    """The jitted function (state, batch [A, B, ...], shift) -> loss and gradient of each device's rows, leading axis P.

    A program per device (`jax.shard_map`) that has no sum over devices. Device d computes with the rows of device d + shift, which the
    devices send each other, and with the totals of those rows alone.
    """
    groups = make_groups(config, definition.shapes, definition.layers_of)
    axes = RULES["batch"]  # the outermost of AXES

    def on_device(params: Any, batch: Batch, key: jax.Array, shift: jax.Array) -> Any:
        devices = jax.lax.axis_size(AXES)
        place = (jax.lax.axis_index(AXES) + shift) % devices // (devices // jax.lax.axis_size(axes))
        rows = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(jax.lax.all_gather(x, axes), place, keepdims=False), batch
        )
        with as_batch_shard(place):
            loss, _, _, gradient = loss_and_gradient(objective, definition, params, rows, key, groups)
        return jax.tree.map(lambda x: x[None], {"loss": loss, "gradient": gradient})

    def gradient(state: State, batch: Batch, shift: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])
        everywhere, rows = PartitionSpec(), PartitionSpec(None, axes)
        run = jax.shard_map(
            on_device,
            in_specs=(everywhere, rows, everywhere, everywhere),
            out_specs=PartitionSpec(AXES),
            check_vma=False,
        )
        return run(state["params"], batch, key, shift)

    return jax.jit(gradient)


def _fits(params: Any, device: jax.Device) -> bool:
    """Whether the device has room for the whole model and its gradient: it has the model anyway, or both take a quarter of its memory."""
    leaves = jax.tree.leaves(params)
    room = (device.memory_stats() or {}).get("bytes_limit", math.inf)
    return all(x.sharding.is_fully_replicated for x in leaves) or 2 * sum(x.nbytes for x in leaves) <= room / 4


@functools.partial(jax.jit, static_argnums=1)
def _of_devices(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Digests of what each device has of an array, [P, 2] uint32; copies of it count one by one."""
    return jax.shard_map(
        lambda part: digest_words(part)[None], in_specs=spec, out_specs=PartitionSpec(AXES), check_vma=False
    )(x)


def evidence(tree: Any) -> np.ndarray:
    """[P, W] uint32: digests of each device's parts of the arrays, in all processes."""
    words = [_of_devices(x, x.sharding.spec) for x in jax.tree.leaves(tree)]
    return np.concatenate(to_host(words), axis=1)


def suspects(runs: Sequence[Run], same: int = 1) -> list[int]:
    """Places on the mesh of the devices whose evidence speaks against them; none where all agree.

    So many devices in a row have the `same` rows. Of runs that differ: those that contradict themselves, else those that most others contradict, else all that differ.
    """
    size = len(runs[0][1])
    found: dict[int, list[tuple[int, bytes]]] = collections.defaultdict(list)  # by rows: (device, evidence)
    for shift, evidence_PW in runs:
        for device in range(size):
            found[(device + shift) % size // same].append((device, evidence_PW[device].tobytes()))
    differing = {rows: seen for rows, seen in found.items() if len({words for _, words in seen}) > 1}
    fickle: set[int] = set()
    outvoted: set[int] = set()
    involved: set[int] = set()
    for seen in differing.values():
        by_device = collections.defaultdict(set)
        for device, words in seen:
            by_device[device].add(words)
        involved |= by_device.keys()
        fickle |= {device for device, said in by_device.items() if len(said) > 1}
        usual, votes = collections.Counter(words for _, words in seen).most_common(1)[0]
        if 2 * votes > len(seen):
            outvoted |= {device for device, words in seen if words != usual}
    return sorted(fickle or outvoted or involved)


def park(state: State) -> State:
    """A copy of a state that outlives the step that overwrites it: in the host's memory, so that the devices need room for one only."""
    return jax.block_until_ready(
        jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), state)
    )


def unpark(kept: State) -> State:
    """The state again, in memory of its own on the devices."""
    return jax.block_until_ready(
        copied(jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), kept))
    )


def _read(path: pathlib.Path) -> int:
    """The last step that passed before this start; 0 if none is known."""
    try:
        return int(read_json(path, error=CheckpointError)["step"])
    except (CheckpointError, ValueError, TypeError, KeyError, OverflowError):
        return 0

"""Detection of silent data corruption: devices that compute wrong results without an error.

One of every `train.check_every` steps is computed again, from the same bits, by the same program:

- the whole update twice, on the same devices. The digests of every device's part of the two new states must agree: parameters, moments
  (which contain the gradient) and the window (which contains the loss);
- with several devices, the loss and gradient of each device's rows, before any sum over devices, on that device and again on the next one.
  If they differ, further devices compute the same rows, and the majority decides which device is at fault. Each device needs the whole
  model for this, so a sharded model must be small enough (see `_fits`).

The first check finds intermittent faults. Only the second finds a device that is wrong in the same way each time, and only it can
identify one of several devices: a sum over devices spreads an error to all of them. The Gemini report (2023, section 5.1) describes such
replays.

Legend: A accumulation steps, B batch, P devices of the mesh in its order, W words of digests.
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
from lm_research.parallel import exchange
from lm_research.parallel.batches import to_host
from lm_research.parallel.mesh import AXES
from lm_research.parallel.rules import RULES, as_batch_shard
from lm_research.run.callbacks import Callback, StepCall, every
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.goodput import TimeAccount
from lm_research.training.param_groups import make_groups
from lm_research.training.state import State, copy_arrays
from lm_research.training.step import loss_and_gradient

FILE = "checked.json"
_DETERMINISTIC = ("xla_gpu_deterministic_ops=true", "xla_gpu_exclude_nondeterministic_ops=true")

# One computation whose result must not depend on the device: by how many devices the rows were shifted, and the digests [P, W].
Run = tuple[int, np.ndarray]


class Recheck(Callback):
    """The callback that checks a run's steps, in all processes at the same steps and with the same result.

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
        """Prepare the checks from step `start`; `account` is charged for them.

        Raises:
          ConfigError: the platform's programs are not deterministic.
        """
        self._every, self._mesh, self._path, self._log = config.train.check_every, mesh, workdir / FILE, log
        self._account, self._checkpoints, flags = account, checkpoints, os.environ.get("XLA_FLAGS", "")
        if self._every and mesh.devices.flat[0].platform == "gpu" and not any(flag in flags for flag in _DETERMINISTIC):
            raise ConfigError(
                f"config.train.check_every={self._every} compares bits, but GPU programs add in an order that changes from run to run. Set "
                f"XLA_FLAGS=--{_DETERMINISTIC[0]} (steps may take longer), or --config.train.check_every=0."
            )
        self._gradient: Any = make_gradient(config, objective, definition) if self._every else None
        self._compares_devices: bool | None = None
        self._rehearsed: np.ndarray | None = None  # digests of the step that is about to be taken
        self.passed = min(start, _read(self._path)) if self._every else 0

    def due(self, step: int) -> bool:
        """Check whether the step of this number, counted from 1, is checked."""
        return every(self._every, step)

    def on_step_begin(self, call: StepCall) -> None:
        """Compute all of a due step but the update that counts; this donates the state and replaces it by one of the same bits.

        Raises:
          DeviceFault: devices differ.
        """
        if self.due(call.number):
            jax.block_until_ready(call.state)
            with self._account.paused("check"):
                self._rehearse(call)

    def on_step_end(self, step: int, state: State) -> None:
        """Compare the update that counts with the one of `on_step_begin`.

        Raises:
          DeviceFault: their bits differ.
        """
        if self.due(step):
            jax.block_until_ready(state)
            with self._account.paused("check"):
                self._compare_updates(step, state)

    def _rehearse(self, call: StepCall) -> None:
        if self._compares_devices is None:
            fits = _fits(call.state["params"], self._mesh.local_devices[0])
            self._compares_devices = self._mesh.size > 1 and exchange.broadcast_flag(fits)
            self._log(f"train.check_every={self._every}: {self._form()}")
        if self._compares_devices:
            self._compare_devices(call)
        saved = copy_to_host(call.state)
        self._rehearsed = device_digests(call.program(call.state))
        call.state = copy_to_devices(saved)

    def _compare_updates(self, step: int, state: State) -> None:
        counted = device_digests(state)
        differing = np.flatnonzero((counted != self._rehearsed).any(1)).tolist()
        if differing:
            self._stop(step, "the update was computed twice on the same devices", differing)
        self.passed = step
        if jax.process_index() == 0:
            write_atomically(self._path, json.dumps({"step": step}) + "\n")

    def _form(self) -> str:
        if self._compares_devices:
            return "each such step is computed twice, and each device's loss and gradient on another device too"
        large = ": model and gradient together would take over a quarter of a device's memory" * (self._mesh.size > 1)
        return f"each such step is computed twice on the same devices, and not on others{large}"

    def _compare_devices(self, call: StepCall) -> None:
        def compute(shift: int) -> tuple[int, Any]:
            return (shift, device_digests(self._gradient(call.state, call.batch, np.int32(shift))))

        size, same = self._mesh.size, self._mesh.shape["context"] * self._mesh.shape["tensor"]
        runs = [compute(0), compute(1)]
        if not find_suspects(runs, same):
            return
        runs += [compute(shift) for shift in ((2, 3 % size) if size > 2 else (0, 1))]
        what = "the loss and gradient of the same rows were computed on different devices"
        self._stop(call.number, what, find_suspects(runs, same))

    def _stop(self, step: int, what: str, places: Sequence[int]) -> None:
        devices = self._mesh.devices.flat
        names = [f"{d.id} ({d.device_kind}, process {d.process_index})" for d in (devices[place] for place in places)]
        one = len(names) == 1
        if len(names) > 8:
            names = [*names[:8], f"{len(names) - 8} more"]
        hint = (
            "" if one else "; an error of one may have reached the others through a sum, so any of them may be at fault"
        )
        self._checkpoints.wait()
        self._checkpoints.drop_local(self.passed)
        raise DeviceFault(
            f"Step {step}: {what}, and the bits differ on device{'' if one else 's'} {', '.join(names)}{hint}. This step is discarded. "
            f"{recovery_hint(self._checkpoints, self.passed)}"
        )


def recovery_hint(checkpoints: Checkpoints, passed: int) -> str:
    """Describe which checkpoints are trustworthy after a failed check, and what to do; `passed` is the last step whose check passed."""
    sound = [step for step in checkpoints.steps if step <= passed]
    doubtful = [str(checkpoints.directory / str(step)) for step in checkpoints.steps if step > passed]
    if sound:
        hint = f"Checkpoint {max(sound)} is the newest from before the last check that found nothing (step {passed})"
    else:
        hint = "No checkpoint is from before a check that found nothing"
    if doubtful:
        hint += f"; {', '.join(doubtful)} may hold what a faulty device computed: remove {'it' if len(doubtful) == 1 else 'them'}"
    after = f"resumes from step {max(sound)}" if sound else "starts over"
    return f"{hint}. Take the device or its machine out of use (the mesh may change); the same command then {after}."


def make_gradient(config: Config, objective: Objective, definition: ModelDefinition) -> Any:
    """Make the jitted function (state, batch [A, B, ...], shift) -> loss and gradient of each device's rows, leading axis P.

    It is a program per device (`jax.shard_map`) without sums over devices. Device d computes with the rows of device d + shift, which the
    devices exchange, and with the totals of those rows only.
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
            loss, _, _, gradient = loss_and_gradient(
                objective, definition, params, rows, key, groups, quantization=config.train.quantization
            )
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
    """Check whether a device can hold the whole model and its gradient: the model is replicated, or both fit a quarter of its memory."""
    leaves = jax.tree.leaves(params)
    memory = (device.memory_stats() or {}).get("bytes_limit", math.inf)
    return all(x.sharding.is_fully_replicated for x in leaves) or 2 * sum(x.nbytes for x in leaves) <= memory / 4


@functools.partial(jax.jit, static_argnums=1)
def _of_devices(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Compute digests of each device's part of an array, [P, 2] uint32, replicas included."""
    return jax.shard_map(
        lambda part: digest_words(part)[None], in_specs=spec, out_specs=PartitionSpec(AXES), check_vma=False
    )(x)


def device_digests(tree: Any) -> np.ndarray:
    """Collect in all processes the digests [P, W] uint32 of each device's parts of the arrays."""
    words = [_of_devices(x, x.sharding.spec) for x in jax.tree.leaves(tree)]
    return np.concatenate(to_host(words), axis=1)


def find_suspects(runs: Sequence[Run], same: int = 1) -> list[int]:
    """Find the devices at fault, as places on the mesh; none if all agree.

    Each group of `same` consecutive devices has the same rows. If runs differ, the devices at fault are those that contradict
    themselves; if none do, those that a majority contradicts; otherwise all that differ.
    """
    size = len(runs[0][1])
    by_rows: dict[int, list[tuple[int, bytes]]] = collections.defaultdict(list)  # rows -> (device, digests)
    for shift, digests_PW in runs:
        for device in range(size):
            by_rows[(device + shift) % size // same].append((device, digests_PW[device].tobytes()))
    inconsistent: set[int] = set()
    outvoted: set[int] = set()
    involved: set[int] = set()
    for results in by_rows.values():
        if len({digest for _, digest in results}) == 1:
            continue
        by_device = collections.defaultdict(set)
        for device, digest in results:
            by_device[device].add(digest)
        involved |= by_device.keys()
        inconsistent |= {device for device, digests in by_device.items() if len(digests) > 1}
        majority, votes = collections.Counter(digest for _, digest in results).most_common(1)[0]
        if 2 * votes > len(results):
            outvoted |= {device for device, digest in results if digest != majority}
    return sorted(inconsistent or outvoted or involved)


def copy_to_host(state: State) -> State:
    """Copy a state to the host's memory, so that it survives the step that overwrites it, and devices need memory for only one."""
    return jax.block_until_ready(
        jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), state)
    )


def copy_to_devices(saved: State) -> State:
    """Copy a state from the host's memory back to the devices."""
    return jax.block_until_ready(
        copy_arrays(jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), saved))
    )


def _read(path: pathlib.Path) -> int:
    """Read the last step that passed before this start; 0 if there is none."""
    try:
        return int(read_json(path, error=CheckpointError)["step"])
    except (CheckpointError, ValueError, TypeError, KeyError, OverflowError):
        return 0

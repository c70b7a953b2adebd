"""Checkpoints through Orbax: asynchronous, visible only when whole, restorable onto any mesh.

A checkpoint WORKDIR/checkpoints/STEP/ holds `state` (plain nested dicts of arrays, see state.py) and `files`: the
resolved config, the tokenizer, and a manifest with the evaluation at that step and a digest of each array and file that
is checked when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm_research.config import CheckpointConfig
from lm_research.errors import CheckpointError
from lm_research.training.digest import digest_arrays
from lm_research.training.state import State

# Not saved: a state that halted is never saved as a later step, so it would always be -1.
TRANSIENT = ("halted",)
MANIFEST = "manifest.json"


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class _FilesHandler(ocp.CheckpointHandler):
    """Small files, by name, as one item of a checkpoint."""

    def save(self, directory: epath.Path, args: FilesSave) -> None:
        if jax.process_index() == 0:
            for name, content in args.contents.items():
                (directory / name).write_bytes(content)

    def restore(self, directory: epath.Path, args: FilesRestore | None = None) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}


@ocp.args.register_with_handler(_FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    contents: Mapping[str, bytes]


@ocp.args.register_with_handler(_FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    pass


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the `count` checkpoints with the lowest rank, known by step (Orbax forgets it at a restart)."""

    count: int
    ranks: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        known = [step for step in steps if math.isfinite(self.ranks.get(step, math.inf))]
        best = sorted(known, key=lambda step: (self.ranks[step], -step))[: self.count]
        return [step in best for step in steps]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, files: Mapping[str, bytes]) -> None:
        """`files` (name -> content) go into every checkpoint beside the state."""
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self.files = dict(files)
        self._ranks: dict[int, float] = {}
        keep = [preservation_policy.LatestN(config.keep), _KeepBest(config.keep_best, self._ranks)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        for step in self._manager.all_steps():
            self._learn_rank(step)

    def _learn_rank(self, step: int) -> None:
        try:
            manifest = self._manifest(step)
            self._ranks[step] = float(manifest.get("rank", manifest["metrics"]["eval_loss_nats"]))
        except (CheckpointError, KeyError, TypeError, ValueError):
            pass  # saved without an evaluation, or damaged: not the best of any

    @property
    def latest_step(self) -> int | None:
        """Number of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Numbers of all complete checkpoints, rising."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """Number of the complete checkpoint with the lowest rank, the newest of equals; None if none was evaluated."""
        known = [step for step in self._manager.all_steps() if math.isfinite(self._ranks.get(step, math.inf))]
        return min(known, key=lambda step: (self._ranks[step], -step), default=None)

    def save(self, state: State, metrics: dict[str, float] | None = None, rank: float | None = None) -> None:
        """Starts writing the state under its step number; returns when it may be donated again.

        Args:
          state: a running (not halted) state.
          metrics: evaluation metrics at this very step, if there was one.
          rank: the smaller, the better the checkpoint; None takes the evaluation's loss.
        """
        step = int(state["step"])
        if step in self._manager.all_steps():
            return
        kept = {name: tree for name, tree in state.items() if name not in TRANSIENT}
        manifest = {
            "step": step,
            "metrics": metrics,
            **({} if rank is None else {"rank": rank}),
            "digests": digest_arrays(kept),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()},
        }
        files = self.files | {MANIFEST: json.dumps(manifest, indent=1).encode()}
        if metrics:
            self._ranks[step] = metrics["eval_loss_nats"] if rank is None else rank
        if jax.default_backend() == "cpu":
            # Here the writer would read the very buffers that the next step overwrites; elsewhere Orbax copies them first.
            kept = jax.block_until_ready(_copy(kept))
        args = ocp.args.Composite(state=ocp.args.StandardSave(kept), files=FilesSave(files))
        self._manager.save(step, args=args)

    def restore(self, shapes: State, shardings: State, step: int | None = None) -> State:
        """Reads a checkpoint (the newest by default) onto the mesh that `shardings` name, and checks its digests.

        Raises:
          CheckpointError: there is none, or it does not fit the model, or its content is not what was written.
        """
        step = self.latest_step if step is None else step
        expected = self._manifest(step)["digests"]
        names = [name for name in shapes if name not in TRANSIENT]
        target = {
            name: jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes[name], shardings[name]
            )
            for name in names
        }
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax raises many kinds for missing files, truncated data and other shapes
            raise self._unreadable(step, error) from error
        # What was read may lie in memory that its reader owns and takes back; the step is to overwrite memory of its own.
        state = jax.block_until_ready(_copy(state))
        found = digest_arrays(state)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise CheckpointError(
                    f"The checkpoint {self.directory / str(step)} is damaged: array {name} has digest {found.get(name)}, but "
                    f"{expected.get(name)} was written. {self._way_out(step)}"
                )
        return state | {"halted": jax.device_put(jnp.full((), -1, jnp.int32), shardings["halted"])}

    def read_file(self, name: str, step: int | None = None) -> bytes:
        """Content of one of the small files of a checkpoint (the newest by default).

        Raises:
          CheckpointError: there is no checkpoint, or the file is not what was written.
        """
        step = self.latest_step if step is None else step
        expected = self._manifest(step)["files"].get(name)
        path = self.directory / str(step) / "files" / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found is None or found != expected:
            state = "is missing" if found is None else "is not what was written"
            raise CheckpointError(
                f"The checkpoint {path.parent.parent} is damaged: files/{name} {state}. {self._way_out(step)}"
            )
        return path.read_bytes()

    def _manifest(self, step: int | None) -> dict[str, Any]:
        path = self.directory / str(step)
        if step is None or not path.is_dir():
            raise CheckpointError(f"No checkpoint found in {self.directory}. Train first, or check the path.")
        try:
            manifest = json.loads((path / "files" / MANIFEST).read_bytes())
            return {**manifest, "digests": dict(manifest["digests"]), "files": dict(manifest["files"])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". See full TensorStore")[0]
        reason = reason if len(reason) < 300 else reason[:300] + " ..."
        return CheckpointError(
            f"The checkpoint {self.directory / str(step)} cannot be read ({reason}). {self._way_out(step)}"
        )

    def _way_out(self, step: int) -> str:
        older = [number for number in self._manager.all_steps() if number < step]
        if older:
            return f"Remove {self.directory / str(step)} to go on from step {max(older)}."
        return "There is no older one; start in a new --workdir."

    def wait(self) -> None:
        """Returns when everything saved so far is on disk and visible."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

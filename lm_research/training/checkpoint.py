"""Checkpoints through Orbax: asynchronous, visible only when whole, restorable onto any mesh.

A checkpoint WORKDIR/checkpoints/STEP/ holds `state` (plain nested dicts of arrays, see state.py) and `files`: the
resolved config, the tokenizer, and a manifest with a digest per array that is checked when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

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


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, files: Mapping[str, bytes]) -> None:
        """`files` (name -> content) go into every checkpoint beside the state."""
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self.files = dict(files)
        keep = [preservation_policy.LatestN(config.keep)]
        if config.keep_best:
            best = preservation_policy.BestN(
                get_metric_fn=lambda metrics: -metrics["eval_loss_nats"],
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """Number of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: State, metrics: dict[str, float] | None = None) -> None:
        """Starts writing the state under its step number; returns when it may be donated again.

        Args:
          state: a running (not halted) state.
          metrics: evaluation metrics at this very step, if there was one; they decide which checkpoint is best.
        """
        step = int(state["step"])
        if step in self._manager.all_steps():
            return
        kept = {name: tree for name, tree in state.items() if name not in TRANSIENT}
        manifest = {"step": step, "metrics": metrics, "digests": digest_arrays(kept)}
        files = self.files | {"manifest.json": json.dumps(manifest, indent=1).encode()}
        if jax.default_backend() == "cpu":
            # Here the writer would read the very buffers that the next step overwrites; elsewhere Orbax copies them first.
            kept = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(kept)
        args = ocp.args.Composite(state=ocp.args.StandardSave(kept), files=FilesSave(files))
        self._manager.save(step, args=args, metrics=metrics)

    def restore(self, shapes: State, shardings: State, step: int | None = None) -> State:
        """Reads a checkpoint (the newest by default) onto the mesh that `shardings` name, and checks its digests.

        Raises:
          CheckpointError: there is none, or it does not fit the model, or its content is not what was written.
        """
        step = self.latest_step if step is None else step
        path = self.directory / str(step)
        if step is None or not path.is_dir():
            raise CheckpointError(f"No checkpoint found in {self.directory}. Train first, or check the path.")
        older = [number for number in self._manager.all_steps() if number < step]
        fix = (
            f"Remove {path} to go on from step {max(older)}."
            if older
            else "There is no older one; start in a new --workdir."
        )
        names = [name for name in shapes if name not in TRANSIENT]
        target = {
            name: jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes[name], shardings[name]
            )
            for name in names
        }
        try:
            manifest = json.loads((path / "files" / "manifest.json").read_bytes())
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax raises many kinds for missing files, truncated data and other shapes
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"The checkpoint {path} cannot be read: {reason} {fix}") from error
        found = digest_arrays(state)
        for name, expected in manifest["digests"].items():
            if found.get(name) != expected:
                raise CheckpointError(
                    f"The checkpoint {path} is damaged: array {name} has digest {found.get(name)}, but {expected} was "
                    f"written. {fix}"
                )
        return state | {"halted": jax.device_put(jnp.full((), -1, jnp.int32), shardings["halted"])}

    def read_file(self, name: str, step: int | None = None) -> bytes | None:
        """Content of one of the small files of a checkpoint (the newest by default), or None without one."""
        step = self.latest_step if step is None else step
        path = self.directory / str(step) / "files" / name
        return path.read_bytes() if step is not None and path.is_file() else None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk and visible."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

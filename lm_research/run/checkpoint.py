"""Checkpoints through Orbax: asynchronous, visible only when whole, restorable onto any mesh.

A checkpoint WORKDIR/checkpoints/STEP/ holds `state` (plain nested dicts of arrays, see state.py) and `files`: the
resolved config, the tokenizer, and a manifest with the evaluation at that step and a digest of each array and file that
is checked when it is read.

One that turns out to be damaged while a run resumes is passed over for the newest whole one, and kept in
WORKDIR/checkpoints/damaged/STEP, where nobody takes it for a checkpoint (checkpoint.on_damage=stop refuses instead). None
is moved unless an older one could be read: what no checkpoint survives is no damage of one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm_research.common import disk
from lm_research.common.paths import FILE, FOLDER, NOTHING, kind
from lm_research.config import CheckpointConfig
from lm_research.config.run_files import checkpoint_steps
from lm_research.errors import CheckpointError
from lm_research.models.digest import digest_arrays
from lm_research.parallel import processes
from lm_research.run.checkpoint_items import FilesSave, KeepBest, KeepThese, StateRestore, StateSave
from lm_research.run.checkpoint_reading import (
    DAMAGED,
    MANIFEST,
    DamagedCheckpoint,
    check_digests,
    fault_of,
    raise_if_any_damaged,
    read_file,
    read_manifest,
    unreadable,
)
from lm_research.run.run_directory import aside
from lm_research.training.state import State, copied

# Not saved: a state that halted is never saved as a later step, so it would always be -1.
TRANSIENT = ("halted",)
_TIMES = "_CHECKPOINT_METADATA"  # Orbax's: read as soon as it looks at a folder; nobody misses it
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what is being written
DOUBTFUL = "of_damaged_text"  # the folder of checkpoints that may have learnt from text that was none


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, files: Mapping[str, bytes]) -> None:
        """`files` (name -> content) go into every checkpoint beside the state."""
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self.files = dict(files)
        self._falls_back = config.on_damage == "fallback"
        self._ranks: dict[int, float] = {}
        self._bytes = 0  # of a checkpoint's arrays and files
        self._trusted: list[
            int
        ] = []  # the last step that was saved before any of the text was in doubt; empty while none is
        keep = [
            preservation_policy.LatestN(config.keep),
            KeepBest(config.keep_best, self._ranks),
            KeepThese(self._trusted),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
        )
        for step in checkpoint_steps(self.directory):
            path = self.directory / str(step) / _TIMES
            if kind(path) not in (FILE, FOLDER, NOTHING):  # a pipe, which holds nothing, and which Orbax would wait for
                path.unlink(missing_ok=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        for step in self._manager.all_steps():
            self._learn_rank(step)

    def _learn_rank(self, step: int) -> None:
        try:
            manifest = read_manifest(self.directory, step)
            self._ranks[step] = float(manifest.get("rank", manifest["metrics"]["eval_loss_nats"]))
        except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
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
        return next(iter(self._by_rank()), None)

    def save(
        self, state: State, metrics: dict[str, float] | None = None, rank: float | None = None, lines: int | None = None
    ) -> None:
        """Starts writing the state under its step number; returns when it may be donated again.

        Args:
          state: a running (not halted) state.
          metrics: evaluation metrics at this very step, if there was one.
          rank: the smaller, the better the checkpoint; None takes the evaluation's loss.
          lines: of metrics.jsonl up to this step.
        """
        step = int(state["step"])
        if step in self._manager.all_steps():
            return
        kept = {name: tree for name, tree in state.items() if name not in TRANSIENT}
        manifest = {
            "step": step,
            "metrics": metrics,
            **({} if rank is None else {"rank": rank}),
            **({} if lines is None else {"lines": lines}),
            **({"trusted": self._trusted[0]} if self._trusted else {}),
            "digests": digest_arrays(kept),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()},
        }
        files = self.files | {MANIFEST: json.dumps(manifest, indent=1).encode()}
        if metrics:
            self._ranks[step] = metrics["eval_loss_nats"] if rank is None else rank
        if jax.default_backend() == "cpu":
            # Here the writer would read the very buffers that the next step overwrites; elsewhere Orbax copies them first.
            kept = jax.block_until_ready(copied(kept))
        args = ocp.args.Composite(state=StateSave(kept), files=FilesSave(files))
        self._bytes = sum(x.nbytes for x in jax.tree.leaves(kept)) + sum(map(len, files.values()))
        with self._writing():
            self._manager.save(step, args=args)

    def restore(self, shapes: State, shardings: State, step: int | None = None) -> State:
        """Reads a checkpoint (the newest by default) onto the mesh that `shardings` name, and checks its digests.

        Raises:
          CheckpointError: there is none, or it does not fit the model, or its content is not what was written.
        """
        step = self.latest_step if step is None else step
        expected = read_manifest(self.directory, step)["digests"]
        assert step is not None, "there is one"
        names = [name for name in shapes if name not in TRANSIENT]
        target = {
            name: jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes[name], shardings[name]
            )
            for name in names
        }
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=StateRestore(target)))["state"]
        except Exception as error:
            state = error
        if not processes.all_processes(not isinstance(state, Exception)):
            raise unreadable(
                self.directory,
                step,
                state if isinstance(state, Exception) else OSError("another process cannot read it"),
            )
        # What was read may lie in memory that its reader owns and takes back; the step is to overwrite memory of its own.
        state = jax.block_until_ready(copied(state))
        check_digests(self.directory, step, digest_arrays(state), expected)
        return state | {"halted": jax.device_put(jnp.full((), -1, jnp.int32), shardings["halted"])}

    def resume(self, read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        """The state of the newest checkpoint that `read` can read; None if there is no checkpoint.

        Newer ones that are damaged are moved into DAMAGED, by process 0, and the log is told; all processes must come here.

        Raises:
          CheckpointError: there are checkpoints, and none is whole, or the newest is not and config.on_damage is stop;
            or `read` raises one that speaks of no damage.
        """
        return self._first_whole(checkpoint_steps(self.directory)[::-1], read, log)

    def resume_best(self, read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        """The same for the checkpoint of the lowest rank, then the next."""
        return self._first_whole(self._by_rank(), read, log)

    def _by_rank(self) -> list[int]:
        known = [step for step in self._manager.all_steps() if math.isfinite(self._ranks.get(step, math.inf))]
        return sorted(known, key=lambda step: (self._ranks[step], -step))

    def _first_whole(self, steps: list[int], read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        failed: dict[int, str] = {}  # texts: an error holds all that was read until it was raised
        for step in steps:
            try:
                state = read(step)
            except DamagedCheckpoint as error:
                if not self._falls_back:
                    raise
                failed[step] = str(error)
                continue
            for damaged, kept in self._set_aside(list(failed)).items():
                log(f"WARNING: {fault_of(failed[damaged])} It is kept in {kept}.")
            if failed:
                log(
                    f"WARNING: going on from checkpoint {step}, which is whole; what came after it is done again "
                    "(checkpoint.on_damage=stop refuses instead)."
                )
            return state
        raise_if_any_damaged(self.directory, list(failed.values()))
        return None

    def trust(self, start: int) -> None:
        """From here on the text is in doubt, until `trust_all` or `distrust`: what is saved says which checkpoint is from before.

        `start`: the step that the run goes on from, 0 where it begins; what it says of itself counts.
        """
        said = read_manifest(self.directory, start).get("trusted") if start else None
        self._trusted[:] = [said if type(said) is int and 0 <= said < start else start]

    def trust_all(self) -> None:
        """The text is what it was said to be."""
        self._trusted.clear()

    def distrust(self) -> str:
        """The text is damaged: moves what was saved since `trust` aside, and says what is left. All processes must come here."""
        self.wait()
        (trusted,) = self._trusted or [0]
        kept = self._set_aside([step for step in checkpoint_steps(self.directory) if step > trusted], DOUBTFUL)
        moved = (
            f"Checkpoints {', '.join(map(str, kept))} may have learnt from it and are kept in {self.directory / DOUBTFUL}. "
            if kept
            else ""
        )
        if trusted and trusted in self._manager.all_steps():
            return f"{moved}Checkpoint {trusted} is from before: the same command goes on from it, once the store is fixed."
        return f"{moved}There is no checkpoint from before: the same command begins anew, once the store is fixed."

    def _set_aside(self, steps: list[int], folder: str = DAMAGED) -> dict[int, pathlib.Path]:
        """Moves checkpoints out of the way, and says where to."""
        kept = {step: aside(self.directory / folder / str(step)) for step in steps}
        if not kept:
            return kept
        processes.all_processes(True)  # have all seen what is there
        for step, target in kept.items() if jax.process_index() == 0 else ():
            try:
                target.parent.mkdir(exist_ok=True)
                os.rename(self.directory / str(step), target)
            except OSError as error:
                raise CheckpointError(
                    f"The checkpoint {self.directory / str(step)} is damaged and cannot be moved to {target}: {error.strerror}. Move it "
                    "away to go on from an older one."
                ) from error
        processes.all_processes(True)
        self._manager.reload()
        for step in steps:
            self._ranks.pop(step, None)
        return kept

    def lines(self, step: int) -> int | None:
        """Lines that metrics.jsonl had up to a checkpoint; None where that was not written down."""
        lines = read_manifest(self.directory, step).get("lines")
        return lines if type(lines) is int else None

    def read_file(self, name: str, step: int | None = None) -> bytes:
        """A small file of a checkpoint (the newest by default); raises a CheckpointError if it is not what was written."""
        return read_file(self.directory, name, self.latest_step if step is None else step)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk and visible."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        """After an error: what is being saved is saved if it can be, and no thread goes on."""
        if kind is None:
            return
        with contextlib.suppress(Exception):
            self._manager.close()
        if disk.errno_of(error) is not None and jax.process_count() == 1:
            unfinished = list(self.directory.glob(f"*{_UNFINISHED}*"))
            for path in unfinished:  # so that what it took is free
                shutil.rmtree(path, ignore_errors=True)
            if unfinished and "__notes__" not in vars(error):  # another file met the disk that it had filled
                error.add_note(self._takes())

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Names the checkpoints where one cannot be written, which may be told by a later call than began it."""
        return disk.unwrapping_os_errors(self.directory, self._takes)

    def _takes(self) -> str:
        return f"A checkpoint takes about {disk.format_size(self._bytes)}."

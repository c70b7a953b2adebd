"""Checkpoints through Orbax: asynchronous, visible only when complete, restorable onto any mesh.

A checkpoint WORKDIR/checkpoints/STEP/ holds `state` (plain nested dicts of arrays, see state.py) and `files`: the
resolved config, the tokenizer, and a manifest with the evaluation at that step and a digest of each array and file, which
is checked when it is read.

A run that resumes skips damaged checkpoints, uses the newest intact one, and moves the damaged ones to
WORKDIR/checkpoints/damaged/STEP (checkpoint.on_damage=stop refuses instead). They are moved only once an older one was
read: if none can be read, the cause is not the damage of one file.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm_research.common import buckets, disk
from lm_research.common.paths import FILE, FOLDER, NOTHING, is_remote, kind
from lm_research.config import CheckpointConfig
from lm_research.config.run_files import checkpoint_steps, newest_step
from lm_research.errors import CheckpointError
from lm_research.models.digest import digest_arrays
from lm_research.parallel import exchange
from lm_research.run.checkpoint_copy import TIMES, CheckpointCopy
from lm_research.run.checkpoint_items import FilesSave, KeepBest, KeepThese, PendingWrite, StateRestore, save_in_parts
from lm_research.run.checkpoint_reading import (
    DAMAGED,
    DamagedCheckpoint,
    check_digests,
    describe_damage,
    raise_if_any_damaged,
    read_file,
    read_manifest,
    saved_so_far,
    unreadable,
)
from lm_research.run.checkpoint_snapshot import Snapshot, own_arrays
from lm_research.run.local_tier import LocalTier, describe, halted
from lm_research.run.run_directory import first_free_path
from lm_research.training.state import State

# Not saved: a state that halted is never saved as a later step, so it would always be -1.
TRANSIENT = ("halted",)
CORPUS = "corpus.json"  # the file that describes the text of a run
_UNFINISHED = ".orbax-checkpoint-tmp"  # part of the names of unfinished checkpoints
DOUBTFUL = "of_damaged_text"  # the folder of checkpoints that may have been trained on damaged text


def _kept(state: State) -> State:
    return {name: tree for name, tree in state.items() if name not in TRANSIENT}


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: CheckpointConfig,
        files: Mapping[str, bytes],
        log: Callable[[str], None] = print,
        before: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Open the checkpoints.

        Args:
          workdir: the run directory, on this machine or in a bucket.
          config: how often and how many to keep.
          files: stored in every new one next to the state, name -> content.
          log: for warnings.
          before: called in process 0's writer before a checkpoint becomes complete, and in each process's before an emergency
            checkpoint does: stores what a run that resumes from it needs beside it. The latter passes the seconds for which it may try again.
        """
        self.directory = (workdir if is_remote(workdir) else pathlib.Path(workdir).absolute()) / "checkpoints"
        self._copy = CheckpointCopy(self.directory)
        self.files, self._before = dict(files), before
        self._falls_back = config.on_damage == "fallback"
        self._ranks: dict[int, float] = {}
        self._bytes = 0  # of a checkpoint's arrays and files
        self._pending: list[PendingWrite] = []  # of the arrays of the last save
        self._saves = 0  # since the start
        self._snapshot = Snapshot()
        # The last step saved before any of the text was in doubt; empty while no text is.
        self._trusted: list[int] = []
        keep = [
            preservation_policy.LatestN(config.keep),
            KeepBest(config.keep_best, self._ranks),
            KeepThese(self._trusted),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
        )
        for step in checkpoint_steps(self.directory) if not is_remote(self.directory) else ():
            path = self.directory / str(step) / TIMES
            if kind(path) not in (FILE, FOLDER, NOTHING):  # a pipe is empty, and reading it would block Orbax
                path.unlink(missing_ok=True)
        self._manager = ocp.CheckpointManager(self._copy.folder, options=options)
        self._copy.kept = self._manager.all_steps
        for step in self._manager.all_steps():
            self._learn_rank(step)
        self._often = bool(config.every_steps or config.local_every_steps)
        self._local = LocalTier(config.local_directory, workdir, log, before) if config.local_every_steps else None
        self._log = log
        self._resumed: dict[str, Any] = {}  # the manifest of the emergency checkpoint that the run resumed from

    def _learn_rank(self, step: int) -> None:
        try:
            manifest = read_manifest(self.directory, step)
            self._ranks[step] = float(manifest.get("rank", manifest["metrics"]["eval_loss_nats"]))
        except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
            pass  # saved without an evaluation, or damaged: never the best

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the complete checkpoint with the lowest rank, the newest of equals; None if none was evaluated."""
        return next(iter(self._by_rank()), None)

    def prepare(self, state: State) -> None:
        """Prepare for saving states like this one, while the step is compiled, if saves are due every few steps: they get memory of their own."""
        if self._often:
            self._snapshot.reserve(_kept(state))

    def save(
        self, state: State, metrics: dict[str, float] | None = None, rank: float | None = None, lines: int | None = None
    ) -> None:
        """Start writing the state under its step number; return when it may be donated again.

        Args:
          state: a running (not halted) state.
          metrics: the metrics of an evaluation at exactly this step, if there was one.
          rank: smaller is better; None uses the evaluation's loss.
          lines: number of lines of metrics.jsonl up to this step.
        """
        step = int(state["step"])
        if step in self._manager.all_steps():
            return
        manifest = self._describe(step, lines) | {"metrics": metrics} | ({} if rank is None else {"rank": rank})
        if metrics:
            self._ranks[step] = metrics["eval_loss_nats"] if rank is None else rank
        self._saves += 1
        exchange.meet(f"save checkpoint {step}", f"save/{self._saves}", lambda: saved_so_far(self.directory))
        self.wait()  # until the memory of the last snapshot is free
        kept, digests = self._snapshot.take(_kept(state))
        args = ocp.args.Composite(
            state=save_in_parts(kept, self._pending), files=FilesSave(self.files, manifest, digests, self._before)
        )
        self._bytes = sum(x.nbytes for x in jax.tree.leaves(kept)) + sum(map(len, self.files.values()))
        with self._writing():
            self._manager.save(step, args=args)

    def _describe(self, step: int, lines: int | None) -> dict[str, Any]:
        return {
            "step": step,
            **({} if lines is None else {"lines": lines}),
            **({"trusted": self._trusted[0]} if self._trusted else {}),
        }

    def save_local(self, state: State, lines: int | None = None) -> None:
        """Copy a running state into this host's emergency checkpoints; return when it may be donated again. All processes must call this."""
        assert self._local is not None, "checkpoint.local_every_steps is set"
        manifest = describe(self.files.get(CORPUS), self._describe(int(state["step"]), lines))
        self._local.save(_kept(state), manifest)

    def resume_local(self, shapes: State, shardings: State, check: Callable[[State, int], None]) -> State | None:
        """Return the state of the newest emergency checkpoint if it is newer than the others, and `check` raises no CheckpointError."""
        if self._local is None:
            return None
        newest = newest_step(self.directory) or 0
        found = self._local.restore(_kept(shapes), _kept(shardings), newest, self.files.get(CORPUS))
        if found is None:
            return None
        state, manifest = found
        try:
            check(state, manifest["step"])
        except CheckpointError as error:
            self._log(
                f"WARNING: the local checkpoint of step {manifest['step']} is not used: {describe_damage(str(error))}"
            )
            return None
        self._resumed = manifest
        return state | {"halted": halted(shardings["halted"])}

    def drop_local(self, above: int) -> None:
        """Remove emergency checkpoints after a step. All processes must call this."""
        if self._local is not None:
            self._local.drop(above)

    def restore(self, shapes: State, shardings: State, step: int | None = None) -> State:
        """Read a checkpoint (the newest by default) onto the mesh of `shardings`, and check its digests.

        Raises:
          CheckpointError: it does not exist, does not fit the model, or its content is not what was written.
        """
        step = self.latest_step if step is None else step
        self._snapshot.free()
        expected = read_manifest(self.directory, step)["digests"]
        assert step is not None, "there is one"
        self._copy.fetch(step)
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
        if not exchange.all_processes(not isinstance(state, Exception)):
            raise unreadable(
                self.directory,
                step,
                state if isinstance(state, Exception) else OSError("another process cannot read it"),
            )
        state = own_arrays(state)
        check_digests(self.directory, step, digest_arrays(state), expected)
        return state | {"halted": halted(shardings["halted"])}

    def resume(self, read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        """Return the state of the newest checkpoint that `read` can read; None if there is no checkpoint.

        Process 0 moves newer ones that are damaged to DAMAGED and logs it. All processes must call this.

        Raises:
          CheckpointError: none of the checkpoints is intact, or the newest is not and config.on_damage is stop;
            or `read` raises one that is not about damage.
        """
        return self._first_whole(checkpoint_steps(self.directory)[::-1], read, log)

    def resume_best(self, read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        """Do the same in the order of rank, the lowest first."""
        return self._first_whole(self._by_rank(), read, log)

    def _by_rank(self) -> list[int]:
        known = [step for step in self._manager.all_steps() if math.isfinite(self._ranks.get(step, math.inf))]
        return sorted(known, key=lambda step: (self._ranks[step], -step))

    def _first_whole(self, steps: list[int], read: Callable[[int], State], log: Callable[[str], None]) -> State | None:
        failed: dict[int, str] = {}  # messages, because an error object keeps all arrays read so far alive
        for step in steps:
            try:
                state = read(step)
            except DamagedCheckpoint as error:
                if not self._falls_back:
                    raise
                failed[step] = self._copy.named(str(error))
                continue
            for damaged, kept in self._set_aside(list(failed)).items():
                log(f"WARNING: {describe_damage(failed[damaged])} It is kept in {kept}.")
            if failed:
                log(
                    f"WARNING: resuming from checkpoint {step}, which is intact; the steps after it are repeated "
                    "(checkpoint.on_damage=stop refuses instead)."
                )
            return state
        raise_if_any_damaged(self.directory, list(failed.values()))
        return None

    def trust(self, start: int) -> None:
        """Mark the text as unverified until `trust_all` or `distrust`: each checkpoint records the last one from before.

        `start` is the step that the run resumes from, 0 for a new run; if that checkpoint records an earlier one, it is kept.
        """
        recorded = self._manifest(start).get("trusted") if start else None
        self._trusted[:] = [recorded if type(recorded) is int and 0 <= recorded < start else start]

    def trust_all(self) -> None:
        """Mark the text as verified."""
        self._trusted.clear()

    def distrust(self) -> str:
        """Move checkpoints saved since `trust` aside, because the text is damaged; describe what is left. All processes must call this."""
        self.wait()
        (trusted,) = self._trusted or [0]
        self.drop_local(trusted)
        kept = self._set_aside([step for step in checkpoint_steps(self.directory) if step > trusted], DOUBTFUL)
        moved = (
            f"Checkpoints {', '.join(map(str, kept))} may have been trained on it and are kept in {self.directory / DOUBTFUL}. "
            if kept
            else ""
        )
        if trusted and trusted in self._manager.all_steps():
            return f"{moved}Checkpoint {trusted} is from before: the same command resumes from it, once the store is fixed."
        return f"{moved}There is no checkpoint from before: the same command starts over, once the store is fixed."

    def _set_aside(self, steps: list[int], folder: str = DAMAGED) -> dict[int, pathlib.Path]:
        """Move checkpoints to another folder; return the new paths."""
        kept = {step: first_free_path(self.directory / folder / str(step)) for step in steps}
        if not kept:
            return kept
        exchange.all_processes(True)  # all have listed the folder
        for step, target in kept.items() if jax.process_index() == 0 else ():
            try:
                target.parent.mkdir(exist_ok=True)
                (buckets.move if is_remote(target) else os.rename)(self.directory / str(step), target)
            except OSError as error:
                raise CheckpointError(
                    f"The checkpoint {self.directory / str(step)} is damaged and cannot be moved to {target}: {error.strerror or error}. "
                    "Move it away to resume from an older one."
                ) from error
        exchange.all_processes(True)
        self._copy.forget(kept)
        self._manager.reload()
        for step in steps:
            self._ranks.pop(step, None)
        return kept

    def lines(self, step: int) -> int | None:
        """Return the number of lines that metrics.jsonl had up to a checkpoint; None if it was not recorded."""
        lines = self._manifest(step).get("lines")
        return lines if type(lines) is int else None

    def _manifest(self, step: int) -> dict[str, Any]:
        return self._resumed if self._resumed.get("step") == step else read_manifest(self.directory, step)

    def read_file(self, name: str, step: int | None = None) -> bytes:
        """Read a small file of a checkpoint (the newest by default); raise a CheckpointError if it is not what was written."""
        return read_file(self.directory, name, self.latest_step if step is None else step)

    def wait(self) -> None:
        """Wait until everything saved so far is in the run directory and visible."""
        with self._writing():
            self._manager.wait_until_finished()
        self._copy.flush()

    def close(self) -> None:
        """Wait for unfinished writes and stop Orbax's threads."""
        with self._writing():
            self._manager.close()
        self._copy.close()
        if self._local is not None:
            self._local.close(saved=(newest_step(self.directory) or 0) >= self._local.step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        """After an error, finish unfinished saves if possible, and stop all threads."""
        if kind is None:
            return
        with contextlib.suppress(Exception):
            self._manager.close()
        for write in self._pending:  # another part of the checkpoint may have failed first
            with contextlib.suppress(Exception):
                write.result()
        self._copy.__exit__(kind, error, traceback)
        if disk.errno_of(error) is not None and jax.process_count() == 1 and not is_remote(self.directory):
            unfinished = list(self.directory.glob(f"*{_UNFINISHED}*"))
            for path in unfinished:  # free their disk space
                shutil.rmtree(path, ignore_errors=True)
            if unfinished and "__notes__" not in vars(
                error
            ):  # the checkpoint filled the disk, but another file's write failed
                error.add_note(self._takes())

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Name the checkpoints in write errors, which Orbax may raise in a later call than the one that began the write."""
        return disk.unwrapping_os_errors(self._copy.folder, self._takes)

    def _takes(self) -> str:
        return f"A checkpoint takes about {disk.format_size(self._bytes)}."

"""The items of a checkpoint as Orbax handlers, and the policies of which checkpoints to keep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy
from typing_extensions import override

from lm_research.common import disk
from lm_research.interop.orbax_noise import silence_duplicate_errors
from lm_research.parallel import processes
from lm_research.run.checkpoint_reading import MANIFEST, saved_so_far
from lm_research.training.state import State

silence_duplicate_errors()
PART = 2**22  # bytes of an array that are stored, and so read, together, at most


class FilesHandler(ocp.handlers.AsyncCheckpointHandler):
    """Small files, by name, as one item of a checkpoint; the manifest is made by the thread that writes."""

    @override
    async def async_save(self, directory: epath.Path, args: FilesSave) -> list[Any]:
        async def write() -> None:
            self.save(directory, args)

        return [
            PendingWrite(
                ocp.future.CommitFutureAwaitingContractedSignals(write(), name="files"),
                directory.parents[1],
            )
        ]

    @override
    def save(self, directory: epath.Path, args: FilesSave) -> None:
        digests = args.digests()
        if jax.process_index() == 0:
            args.before()
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in args.contents.items()}
            manifest = json.dumps({**args.manifest, "digests": digests, "files": sums}, indent=1)
            for name, content in {**args.contents, MANIFEST: manifest.encode()}.items():
                (directory / name).write_bytes(content)

    @override
    def restore(self, directory: epath.Path, args: FilesRestore | None = None) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}


@dataclasses.dataclass
class PendingWrite:
    """A future of Orbax that ends all processes if it fails; otherwise its threads wait for each other for ten minutes."""

    future: Any
    checkpoints: pathlib.Path

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the write; end all processes if the file system refused it."""
        try:
            return self.future.result(timeout=timeout)
        except Exception as error:
            if refused := disk.as_disk_error(error, saved_so_far(self.checkpoints), str(self.checkpoints)):
                processes.end_all(refused)
            raise


class StateHandler(ocp.StandardCheckpointHandler):
    """The arrays. A failed read returns its error instead of raising it, because all processes wait for each other afterwards."""

    async def async_save(self, directory: epath.Path, *args: Any, **named: Any) -> list[Any]:
        """Start writing and return its futures; a write that the file system refuses ends all processes."""
        futures = await super().async_save(directory, *args, **named)
        pending = [PendingWrite(future, directory.parents[1]) for future in futures or ()]
        named["args"].pending[:] = pending
        return list(pending)

    @override
    def restore(self, directory: epath.Path, *args: Any, **named: Any) -> Any:
        try:
            return super().restore(directory, *args, **named)
        except Exception as error:  # Orbax raises many kinds for missing files, truncated data and other shapes
            return error


@ocp.args.register_with_handler(StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.StandardSave):
    """Arguments for writing the arrays.

    Attributes:
      pending: the handler replaces its items by the writes that it starts, which go on if another item of the checkpoint fails.
    """

    pending: list[PendingWrite] = dataclasses.field(default_factory=list)


def save_in_parts(state: State, pending: list[PendingWrite]) -> StateSave:
    """Make the arguments for writing a state in parts of PART bytes, so that a process on another mesh reads only the parts that it needs."""
    parts = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PART), state)
    return StateSave(state, save_args=parts, pending=pending)


@ocp.args.register_with_handler(StateHandler, for_restore=True)
@dataclasses.dataclass
class StateRestore(ocp.args.StandardRestore):
    """Arguments for reading the arrays."""


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """Arguments for writing the small files.

    Attributes:
      contents: name -> content.
      manifest: the manifest, without digests.
      digests: a function of the writer, of all processes, that returns the digests of the arrays.
      before: called by the writer of process 0 before it writes the manifest.
    """

    contents: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    digests: Callable[[], dict[str, str] | None]
    before: Callable[[], None]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    """Arguments for reading the small files."""


@dataclasses.dataclass
class KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the `count` checkpoints with the lowest rank; `ranks` is by step, as Orbax forgets metrics at a restart."""

    count: int
    ranks: dict[int, float]

    @override
    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        ranked = [step for step in steps if math.isfinite(self.ranks.get(step, math.inf))]
        best = sorted(ranked, key=lambda step: (self.ranks[step], -step))[: self.count]
        return [step in best for step in steps]


@dataclasses.dataclass
class KeepThese(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints of these steps."""

    steps: list[int]

    @override
    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [info.step in self.steps for info in checkpoints]

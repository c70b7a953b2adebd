"""Reading the folders of checkpoints, and the errors for damaged ones."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm_research.common.documents import json_value
from lm_research.common.paths import NOTHING, kind, odd_file
from lm_research.config.run_files import newest_step
from lm_research.errors import CheckpointError
from lm_research.interop.weight_reader import listed, nonfinite_in
from lm_research.training.state import State
from lm_research.trees import flatten

MANIFEST = "manifest.json"
DAMAGED = "damaged"  # the folder of damaged checkpoints
# Words in a reader's error that mean that the machine, not the file, prevents reading.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Too many open files", "out of memory")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint's content is not what was written."""


def read_file(directory: pathlib.Path, name: str, step: int | None) -> bytes:
    """Read one of the small files of a checkpoint.

    Raises:
      CheckpointError: the checkpoint does not exist, or the file is not what was written.
    """
    expected = read_manifest(directory, step)["files"].get(name)
    assert step is not None, "there is one"
    path = directory / str(step) / "files" / name
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError as error:
        raise unreadable(directory, step, error) from error
    if found is None or found != expected:
        state = "is missing" if found is None else "is not what was written"
        raise DamagedCheckpoint(
            f"The checkpoint {path.parent.parent} is damaged: files/{name} {state}. {recovery_hint(directory, step)}"
        )
    return path.read_bytes()


def read_manifest(directory: pathlib.Path, step: int | None) -> dict[str, Any]:
    """Read a checkpoint's manifest: step, metrics, digests of its arrays and files, ...

    Raises:
      CheckpointError: the checkpoint does not exist (step None: there are none), or it cannot be read.
    """
    path = directory / str(step)
    if step is None or kind(path) == NOTHING:
        raise CheckpointError(f"No checkpoint found in {directory}. Train first, or check the path.")
    if odd := odd_file(path):  # reading a pipe would block Orbax
        raise unreadable(directory, step, ValueError(odd))
    try:
        manifest = json_value((path / "files" / MANIFEST).read_bytes())
        return {**manifest, "digests": dict(manifest["digests"]), "files": dict(manifest["files"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable(directory, step, error) from error


def unreadable(directory: pathlib.Path, step: int, error: Exception) -> CheckpointError:
    """Make the error for a checkpoint that a reader failed on: it is damaged, or the machine cannot read it now."""
    reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". See full TensorStore")[0]
    reason = reason if len(reason) < 300 else reason[:300] + " ..."
    passing = isinstance(error, PermissionError | MemoryError) or any(words in reason for words in _PASSING)
    what = f"The checkpoint {directory / str(step)} cannot be read ({reason})."
    if passing:
        return CheckpointError(
            f"{what} It is not damaged: give this process the permissions, files or memory that it needs, and run the same command again."
        )
    return DamagedCheckpoint(f"{what} {recovery_hint(directory, step)}")


def recovery_hint(directory: pathlib.Path, step: int) -> str:
    """Describe in a sentence how to recover from a damaged checkpoint."""
    older = newest_step(directory, below=step)
    if older is not None:
        return f"Remove {directory / str(step)} to resume from step {older}."
    return "There is no older one; start in a new --workdir."


def raise_if_any_damaged(directory: pathlib.Path, failed: Sequence[str]) -> None:
    """Raise a DamagedCheckpoint if a run has checkpoints but none is intact; `failed` has the message of each."""
    if len(failed) == 1:
        raise DamagedCheckpoint(failed[0])
    if failed:
        listed = " ".join(describe_damage(why) for why in failed[:3])
        raise DamagedCheckpoint(
            f"None of the {len(failed)} checkpoints in {directory} can be read: {listed} Nothing was moved or started over. Put a "
            "copy of one of them back, or start in a new --workdir."
        )
    kept = directory / DAMAGED
    if kept.is_dir() and any(kept.iterdir()):
        raise DamagedCheckpoint(
            f"{directory} has only the damaged checkpoints in {kept}. Put an intact copy of one into {directory}, or start in a new "
            "--workdir."
        )


def check_digests(directory: pathlib.Path, step: int, found: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Raise a DamagedCheckpoint if the digests of arrays that were read differ from those that were written."""
    for name in sorted(found.keys() | written.keys()):
        if found.get(name) != written.get(name):
            raise DamagedCheckpoint(
                f"The checkpoint {directory / str(step)} is damaged: array {name} has digest {found.get(name)}, but "
                f"{written.get(name)} was written. {recovery_hint(directory, step)}"
            )


def check_weights(directory: pathlib.Path, step: int, state: State) -> None:
    """Raise a DamagedCheckpoint if a restored state has NaN or infinite weights, from which no step is possible."""
    weights = flatten({name: state[name] for name in ("params", "ema") if name in state})
    found = {path: words for path, x in weights.items() if (words := nonfinite_in(x))}
    if found:
        raise DamagedCheckpoint(
            f"The checkpoint {directory / str(step)} has weights that are NaN or infinite, as they were when it was saved: "
            f"{', '.join(listed(found))}. {recovery_hint(directory, step)}"
        )


def saved_so_far(directory: pathlib.Path) -> str:
    """Describe in a sentence what an interrupted run has saved; `directory` holds its checkpoints."""
    newest = newest_step(directory)
    if newest is None:
        return "No checkpoint was saved yet, so the run starts over."
    return f"Checkpoint {newest} is complete, and the run resumes from it."


def describe_damage(message: str, max_chars: int = 220) -> str:
    """Shorten the message of a DamagedCheckpoint to the damage, without the recovery hint."""
    damage = re.split(" Remove | There is no older one", message)[0]
    return damage if len(damage) <= max_chars else f"{damage[:max_chars]} ..."

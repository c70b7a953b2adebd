"""Reading the folders of checkpoints, and what to say and do where one is not what was written."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm_research.common.documents import json_value
from lm_research.common.paths import odd_file
from lm_research.config.run_files import newest_step
from lm_research.errors import CheckpointError
from lm_research.interop.weight_reader import listed, nonfinite_in
from lm_research.training.state import State
from lm_research.trees import flatten

MANIFEST = "manifest.json"
DAMAGED = "damaged"  # the folder of checkpoints that are none any more
# What a reader says when the machine, and not the file, keeps it from reading.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Too many open files", "out of memory")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not what was written."""


def read_file(directory: pathlib.Path, name: str, step: int | None) -> bytes:
    """Content of one of the small files of a checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or the file is not what was written.
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
            f"The checkpoint {path.parent.parent} is damaged: files/{name} {state}. {way_out(directory, step)}"
        )
    return path.read_bytes()


def read_manifest(directory: pathlib.Path, step: int | None) -> dict[str, Any]:
    """What a checkpoint says of itself: step, metrics, digests of its arrays and files, ...

    Raises:
      CheckpointError: there is none (None: none at all), or it cannot be read.
    """
    path = directory / str(step)
    if step is None or not os.path.lexists(path):
        raise CheckpointError(f"No checkpoint found in {directory}. Train first, or check the path.")
    if odd := odd_file(path):  # Orbax would wait for a pipe
        raise unreadable(directory, step, ValueError(odd))
    try:
        manifest = json_value((path / "files" / MANIFEST).read_bytes())
        return {**manifest, "digests": dict(manifest["digests"]), "files": dict(manifest["files"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable(directory, step, error) from error


def unreadable(directory: pathlib.Path, step: int, error: Exception) -> CheckpointError:
    """The error for a checkpoint that a reader fails at: it is damaged, or the machine does not let it be read now."""
    reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". See full TensorStore")[0]
    reason = reason if len(reason) < 300 else reason[:300] + " ..."
    passing = isinstance(error, PermissionError | MemoryError) or any(words in reason for words in _PASSING)
    what = f"The checkpoint {directory / str(step)} cannot be read ({reason})."
    if passing:
        return CheckpointError(
            f"{what} That is no damage: give this process the permissions, files or memory that it needs, and run the same command again."
        )
    return DamagedCheckpoint(f"{what} {way_out(directory, step)}")


def way_out(directory: pathlib.Path, step: int) -> str:
    """What to do about a damaged checkpoint, in a sentence."""
    older = newest_step(directory, below=step)
    if older is not None:
        return f"Remove {directory / str(step)} to go on from step {older}."
    return "There is no older one; start in a new --workdir."


def raise_if_any_damaged(directory: pathlib.Path, failed: Sequence[str]) -> None:
    """Ends a run that finds no whole checkpoint, unless it never had one; `failed`: what was wrong with each."""
    if len(failed) == 1:
        raise DamagedCheckpoint(failed[0])
    if failed:
        listed = " ".join(fault_of(why) for why in failed[:3])
        raise DamagedCheckpoint(
            f"None of the {len(failed)} checkpoints in {directory} can be read: {listed} Nothing was moved or started anew. Put a "
            "copy of one of them back, or start in a new --workdir."
        )
    kept = directory / DAMAGED
    if kept.is_dir() and any(kept.iterdir()):
        raise DamagedCheckpoint(
            f"{directory} holds no checkpoint but the damaged ones in {kept}. Put a whole copy of one into {directory}, or "
            "start in a new --workdir."
        )


def check_digests(directory: pathlib.Path, step: int, found: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Raises a DamagedCheckpoint if arrays that were read have other digests than those that were written."""
    for name in sorted(found.keys() | written.keys()):
        if found.get(name) != written.get(name):
            raise DamagedCheckpoint(
                f"The checkpoint {directory / str(step)} is damaged: array {name} has digest {found.get(name)}, but "
                f"{written.get(name)} was written. {way_out(directory, step)}"
            )


def check_weights(directory: pathlib.Path, step: int, state: State) -> None:
    """Raises a DamagedCheckpoint if weights of a state that was restored are NaN or infinite: no step from there can be taken."""
    weights = flatten({name: state[name] for name in ("params", "ema") if name in state})
    found = {path: words for path, x in weights.items() if (words := nonfinite_in(x))}
    if found:
        raise DamagedCheckpoint(
            f"The checkpoint {directory / str(step)} has weights that are NaN or infinite, as they were when it was saved: "
            f"{', '.join(listed(found))}. {way_out(directory, step)}"
        )


def saved_so_far(directory: pathlib.Path) -> str:
    """What is not lost of a run that ends here, in a sentence; `directory` holds its checkpoints."""
    newest = newest_step(directory)
    if newest is None:
        return "No checkpoint was saved yet, so the run begins anew."
    return f"Checkpoint {newest} is whole, and the run goes on from it."


def fault_of(words: str, most: int = 220) -> str:
    """What is wrong with a checkpoint, without the way out."""
    fault = re.split(" Remove | There is no older one", words)[0]
    return fault if len(fault) <= most else f"{fault[:most]} ..."

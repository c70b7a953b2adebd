"""Checkpoints in a bucket that Orbax cannot write to (s3://): it writes them into a local folder, from which complete ones are copied."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable

from typing_extensions import override

from lm_research.common import buckets
from lm_research.common.bucket_copies import BucketCopy, fetch, names
from lm_research.config.run_files import COMPLETE, checkpoint_steps

TIMES = "_CHECKPOINT_METADATA"  # Orbax's: it reads this file as soon as it lists a folder, but does not need it


class CheckpointCopy(BucketCopy):
    """The checkpoints of a run, and the folder where Orbax has them: the same one where it can write, which needs nothing of this.

    A checkpoint in a bucket has its final name from its first object on. So COMPLETE is written last and removed first, as Orbax does at gs://.
    In the local folder, the checkpoints of earlier starts are empty but for two small files until `fetch`.

    Attributes:
      kept: returns the steps that Orbax keeps, including one that it is writing.
    """

    _advice = "The same command resumes from the newest checkpoint that it has."

    def __init__(self, address: pathlib.Path) -> None:
        self.kept: Callable[[], Collection[int]] = tuple
        self._complete: set[int] = set()
        super().__init__(address)

    @override
    def _is_copied(self) -> bool:
        return not buckets.takes_arrays(self.address)

    @override
    def _fetch(self, also: Iterable[str], begin: str) -> None:
        self._complete.update(checkpoint_steps(self.address))
        for step in self._complete:
            place = self.folder / str(step)
            place.mkdir()
            fetch(self.address / str(step) / TIMES, place / TIMES)
            (place / COMPLETE).touch()
        found = {name.partition("/")[0] for name in names(self.address)}
        for number in (int(name) for name in found if name.isdecimal() and name == str(int(name))):
            if number not in self._complete:  # of a process that was killed
                self._remove(number)

    @override
    def _copy(self, whole: bool, below: str = "") -> None:
        kept = set(self.kept())
        for step in sorted(kept - self._complete):
            if (self.folder / str(step)).is_dir():  # Orbax renames a folder when it is complete
                super()._copy(whole=True, below=str(step))
                buckets.write(self.address / str(step) / COMPLETE, b"")
                self._complete.add(step)
        if kept <= self._complete:
            # After a write that failed, Orbax no longer lists the checkpoint that it would have replaced, which is still there.
            for step in [one for one in self._complete - kept if not (self.folder / str(one)).exists()]:
                self._remove(step)
                self._complete.remove(step)

    @override
    def _files(self, below: str) -> Iterable[tuple[str, pathlib.Path, os.stat_result]]:
        return (found for found in super()._files(below) if found[0] != f"{below}/{COMPLETE}")

    def _remove(self, step: int) -> None:
        system, root = buckets.filesystem(self.address / str(step))
        for name, options in ((f"{root}/{COMPLETE}", {}), (root, {"recursive": True})):
            with contextlib.suppress(FileNotFoundError):
                system.rm(name, **options)

    def fetch(self, step: int) -> None:
        """Fetch a checkpoint of an earlier start."""
        place = self.folder / str(step)
        if self._is_copied() and not (place / "state").exists():
            fetch(self.address / str(step), place)

    def forget(self, steps: Iterable[int]) -> None:
        """Remove checkpoints that were moved elsewhere in the bucket from the local folder."""
        if self._is_copied():
            with self._copying:
                for step in steps:
                    shutil.rmtree(self.folder / str(step))
                    self._complete.discard(step)

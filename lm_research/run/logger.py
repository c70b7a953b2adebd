"""The lines of a run's log: printed, and kept in a file with the time."""

from __future__ import annotations

import datetime
import pathlib
import sys

import tqdm

from lm_research.common.disk import with_filename


class RunLogger:
    """Prints lines (above the progress bar, if there is one) and keeps them in a file with the time."""

    def __init__(self, workdir: pathlib.Path, main_process: bool = True, name: str = "log.txt") -> None:
        """`name`: of the file in the run's folder; processes have one each, and only the main process prints."""
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", buffering=1)
        self._main = main_process

    def __call__(self, text: str = "") -> None:
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with with_filename(self._file.name):
            for line in text.splitlines() or [""]:
                self._file.write(f"{now} {line}\n")
        if self._main:
            tqdm.tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        self._file.close()

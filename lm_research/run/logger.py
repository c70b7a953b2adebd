"""The log of a run: lines are printed, and written to a file with the time."""

from __future__ import annotations

import datetime
import pathlib
import sys
from collections.abc import Callable

import tqdm

from lm_research.common.disk import with_filename


class RunLogger:
    """Prints lines (above the progress bar, if there is one) and writes them to a file with the time."""

    def __init__(
        self,
        workdir: pathlib.Path,
        main_process: bool = True,
        name: str = "log.txt",
        edit: Callable[[str], str] = lambda text: text,
    ) -> None:
        """Open the file `name` in the run's folder. Each process has its own file; only the main process prints. `edit` changes every text."""
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", buffering=1)
        self._main, self._edit = main_process, edit

    def __call__(self, text: str = "") -> None:
        """Log a text of one or more lines."""
        text = self._edit(text)
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with with_filename(self._file.name):
            for line in text.splitlines() or [""]:
                self._file.write(f"{now} {line}\n")
        if self._main:
            tqdm.tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

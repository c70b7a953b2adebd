"""A training run whose disk fills up ends in one paragraph, and the same command then ends like an uninterrupted run.

The call that writes raises the error that Linux gives for a full disk (ENOSPC); everything else is real.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from helpers.train_helpers import Lab, checkpoints, same, unfinished
from lm_research.common import disk
from lm_research.errors import UserError
from lm_research.parallel import processes
from lm_research.run import checkpoint_items, logger, metrics_log


def refused(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the second checkpoint, step 12, which a thread of Orbax writes."""
    write = checkpoint_items.FilesHandler.save

    def save(self: Any, directory: Any, args: Any) -> None:
        (refused if args.manifest["step"] == 12 else write)(self, directory, args)

    monkeypatch.setattr(checkpoint_items.FilesHandler, "save", save)


class Full:
    """A file whose disk is full once some text has been written to it."""

    def __init__(self, file: Any, text: str) -> None:
        self.file, self.text, self.name = file, text, file.name

    def write(self, text: str) -> int:
        return refused() if self.text in text else self.file.write(text)

    def close(self) -> None:
        self.file.close()


def in_lines(module: Any, text: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The files that a module opens, at the line that has `text`."""
    return lambda monkeypatch: monkeypatch.setattr(
        module, "open", lambda *a, **k: Full(open(*a, **k), text), raising=False
    )


def in_file(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A file that must appear complete."""
    whole = disk.atomic_file

    @contextlib.contextmanager
    def full(path: pathlib.Path, keep: bool = True) -> Any:
        with whole(path, keep) as file:
            yield file
            if path.name == name:
                with disk.with_filename(path):
                    refused()

    return lambda monkeypatch: monkeypatch.setattr(disk, "atomic_file", full)


@pytest.mark.parametrize(
    ("fill", "file", "safe"),
    [
        (in_lines(logger, "run: "), "log.txt", "No checkpoint was saved yet"),
        (in_file("config.json"), "config.json", "No checkpoint was saved yet"),
        (in_lines(metrics_log, '"step": 14'), "metrics.jsonl", "Checkpoint 12 is complete"),
        (in_files, "checkpoints", "A checkpoint takes about"),
        (in_file("summary.json"), "summary.json", "Checkpoint 20 is complete"),
    ],
    ids=["start", "config", "metrics", "checkpoint", "summary"],
)
def test_full(
    lab: Lab,
    bert_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    fill: Any,
    file: str,
    safe: str,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill(monkeypatch)
        assert lab.train(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(
        f"error: {tmp_path / file} cannot be written: No space left on device ("
    )
    assert safe in said
    if file == "checkpoints":
        assert checkpoints(tmp_path) == [6] and "Checkpoint 6 is complete" in said
    assert not [*unfinished(tmp_path), *unfinished(tmp_path / "checkpoints")]
    assert lab.train(tmp_path) == 0
    assert same(tmp_path, bert_run)


@pytest.mark.parametrize(("number", "ends"), [(errno.ENOSPC, 1), (errno.EINTR, 0)])
def test_all_processes_end_if_one_cannot_write(
    number: int, ends: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and from Orbax's thread: the main one waits for all of them."""

    class Future:
        def result(self, timeout: float | None = None) -> None:
            raise OSError(number, os.strerror(number))

    told: list[UserError] = []
    monkeypatch.setattr(processes, "end_all", told.append)
    (tmp_path / "6").mkdir()
    with pytest.raises(OSError):
        checkpoint_items.PendingWrite(Future(), tmp_path).result()
    assert len(told) == ends
    for error in told:
        assert str(error).startswith(f"{tmp_path} cannot be written: No space left on device (")
        assert "Checkpoint 6 is complete" in str(error)

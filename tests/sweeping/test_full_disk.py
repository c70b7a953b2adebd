"""A trial that hit a full disk does not count as failed."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from lm_research.sweeping import runner


@pytest.mark.parametrize(
    ("words", "free", "refused"),
    [
        ("/a/checkpoints cannot be written: No space left on device (3 kB of 8 MB are free).", 10**9, True),
        ("step 7/20", 4096, True),  # its error could not be written either
        ("config.train.num_steps=0 must be 1 or more.", 10**9, False),
    ],
)
def test_whether_the_system_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, words: str, free: int, refused: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**10, 10**10 - free, free))
    assert runner._refused(words, tmp_path) is refused

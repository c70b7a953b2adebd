"""Damage to what a run keeps: it goes on from what is whole, tells what is not, loses nothing, and ends as the undisturbed run."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections.abc import Callable

import pytest
from train_helpers import Lab, checkpoints, metrics, same

from lm_research.data import verify

# What Orbax's threads say of damaged arrays after the error itself has been told.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def largest(checkpoint: pathlib.Path) -> pathlib.Path:
    return max((checkpoint / "state/ocdbt.process_0/d").iterdir(), key=lambda path: path.stat().st_size)


def as_file(checkpoint: pathlib.Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("x")


def emptied(checkpoint: pathlib.Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "flipped array": lambda path: flip(largest(path)),
    "a file in its place": as_file,
    "empty": emptied,
    "cut corpus.json": lambda path: (path / "files/corpus.json").write_text("{"),
}


@pytest.fixture
def run(bert_run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A finished run, with checkpoints of the steps 6, 12, 18 and 20."""
    shutil.copytree(bert_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_newest_whole_checkpoint_goes_on(
    lab: Lab, bert_run: pathlib.Path, run: pathlib.Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[kind](run / "checkpoints/20")
    assert lab.train(run) == 0
    output = capsys.readouterr().out
    assert f"WARNING: The checkpoint {run}/checkpoints/20 " in output
    assert f"kept in {run}/checkpoints/damaged/20" in output and "going on from checkpoint 18" in output
    assert "resuming after step 18" in output and "missing" not in output
    assert same(bert_run, run) and checkpoints(run) == checkpoints(bert_run)
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(bert_run)]
    assert (run / "checkpoints/damaged/20").exists()


def test_several_in_a_row_and_again(
    lab: Lab, bert_run: pathlib.Path, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, wrong in enumerate(((20, 18), (20,))):
        for step, kind in zip(wrong, DAMAGES, strict=False):
            DAMAGES[kind](run / f"checkpoints/{step}")
        assert lab.train(run) == 0
        assert f"resuming after step {(12, 18)[number]}" in capsys.readouterr().out
        assert same(bert_run, run) and checkpoints(run) == checkpoints(bert_run)
    assert sorted(path.name for path in (run / "checkpoints/damaged").iterdir()) == ["18", "20", "20-2"]


def refused(lab: Lab, run: pathlib.Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The paragraph of a start that must leave everything as it is."""
    before = sorted(path.relative_to(run) for path in run.rglob("*") if path.name != ".lock")
    capsys.readouterr()
    assert lab.train(run, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 1200
    assert sorted(path.relative_to(run) for path in run.rglob("*") if path.name != ".lock") == before
    return error


def test_where_none_is_whole_nothing_is_started_anew(
    lab: Lab, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, kind in zip((6, 12, 18, 20), DAMAGES, strict=True):
        DAMAGES[kind](run / f"checkpoints/{step}")
    error = refused(lab, run, capsys)
    assert "None of the 4 checkpoints" in error and "start in a new --workdir" in error
    (run / "checkpoints/damaged").mkdir()
    for step in (6, 12, 18, 20):
        shutil.move(run / f"checkpoints/{step}", run / "checkpoints/damaged")
    assert "holds no checkpoint but the damaged ones" in refused(lab, run, capsys)


def test_stop_refuses_and_moves_nothing(lab: Lab, run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(largest(run / "checkpoints/20"))
    error = refused(lab, run, capsys, "--config.checkpoint.on_damage=stop")
    assert f"Remove {run}/checkpoints/20 to go on from step 18." in error


def lines_of(run: pathlib.Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


def deleted(run: pathlib.Path) -> None:
    (run / "metrics.jsonl").unlink()


def cut(run: pathlib.Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[: len("".join(lines_of(run)[:2])) + 9])


def beheaded(run: pathlib.Path) -> None:
    (run / "metrics.jsonl").write_text("".join(lines_of(run)[1:]))


def flipped(run: pathlib.Path) -> None:
    lines = lines_of(run)
    (run / "metrics.jsonl").write_text("".join(["\x7b" + lines[0], *lines[1:]]))


# Of the run: lines of training after steps 7 and 14 (logging.every_steps=7), of evaluation after 10 and 20; 20 is saved.
LOSSES = {
    deleted: ("all lines up to step 20 are missing (steps 1 to 20)", []),
    cut: ("2 of its lines up to step 20 are missing (steps 11 to 20)", [7, 10]),
    beheaded: ("1 of its lines up to step 20 are missing (steps 1 to 10)", [10, 14, 20]),
    flipped: ("1 of its lines up to step 20 are missing (steps 1 to 10)", [10, 14, 20]),
}


@pytest.mark.parametrize("damage", LOSSES, ids=lambda damage: damage.__name__)
def test_lost_metrics_are_told(
    lab: Lab, run: pathlib.Path, damage: Callable[[pathlib.Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    words, left = LOSSES[damage]
    assert [line["step"] for line in metrics(run)] == [7, 10, 14, 20]
    damage(run)
    whole = (run / "metrics.jsonl").read_bytes() if damage is flipped else b""
    assert lab.train(run) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "was deleted, cut or damaged" in line]
    assert len(found) == 1 and words in found[0]
    assert [line["step"] for line in metrics(run)] == left
    if damage is flipped:
        assert (run / "metrics.jsonl.damaged").read_bytes() == whole


def test_text_that_turns_out_to_be_damaged(
    lab: Lab,
    bert_run: pathlib.Path,
    run: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large store, read in the background, whose damage is found after another checkpoint was saved."""
    for step in (12, 18, 20):
        shutil.rmtree(run / f"checkpoints/{step}")
    shutil.copytree(lab.folder / "cache", run.parent / "cache")
    cache = f"--config.data.cache_dir={run.parent}/cache"
    (tokens,) = (run.parent / "cache").glob("*/train/tokens.bin")
    whole, do = tokens.read_bytes(), verify._do
    flip(tokens)
    for name in ("WHOLE", "SAMPLE"):
        monkeypatch.setattr(verify, name, 0)

    def late(work: list) -> None:
        deadline = time.monotonic() + 60
        while work and 12 not in checkpoints(run) and time.monotonic() < deadline:
            time.sleep(0.01)
        do(work)

    monkeypatch.setattr(verify, "_do", late)
    assert lab.train(run, cache) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: The token store {tokens.parent} is damaged: tokens.bin is not what was written")
    assert "Checkpoints 12" in error and "Checkpoint 6 is from before" in error and error.count("\n") == 1
    assert "learning" not in error and checkpoints(run) == [6]
    assert (run / "checkpoints/of_damaged_text/12").is_dir()
    tokens.write_bytes(whole)
    assert lab.train(run, cache) == 0
    assert same(bert_run, run) and checkpoints(run) == checkpoints(bert_run)
    manifest = json.loads((run / "checkpoints/20/files/manifest.json").read_text())
    assert "trusted" not in manifest

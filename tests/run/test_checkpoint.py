"""Checkpoints: exact, complete or absent, verified on reading, kept by age and by loss."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import pathlib
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.config import CheckpointConfig, MeshConfig
from lm_research.config.run_files import checkpoint_steps, newest_step
from lm_research.errors import CheckpointError
from lm_research.models.digest import digest_arrays
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import replicated
from lm_research.run import checkpoint_snapshot
from lm_research.run.checkpoint import Checkpoints

# Warnings that Orbax's threads log about damaged arrays after the error itself has been raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # now, while those warnings are silenced


FILES = {"config.json": b'{"seed": 0}', "corpus.json": b'{"digest": "abc"}', "tokenizer.model": bytes(range(256))}


def state(step: int) -> dict[str, Any]:
    """A state with every type and shape that a run has; its numbers depend on the step."""
    rng = np.random.default_rng(step)

    def draw() -> dict[str, jax.Array]:
        kernel, bias = rng.normal(size=(24, 40)), rng.normal(size=40)
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    special = jnp.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45], jnp.float32)
    return {
        "step": jnp.int32(step),
        "seed": jnp.uint32(2**32 - 1),
        "params": {"layers": {"dense": draw(), "norm": {"scale": special}}},
        "optimizer": {"count": jnp.int32(step), "mu": draw()},
        "window": {"loss": jnp.float32(rng.normal()), "steps": jnp.float32(3)},
        "halted": jnp.int32(-1),
    }


def open_(workdir: pathlib.Path, **keys: Any) -> Checkpoints:
    return Checkpoints(workdir, CheckpointConfig(**{"keep": 3, "keep_best": 0, **keys}), FILES)


def save(workdir: pathlib.Path, *steps: int, losses: dict[int, float] | None = None, **keys: Any) -> list[int]:
    """Save at the given steps as one run; return the steps found on disk."""
    store = open_(workdir, **keys)
    for step in steps:
        loss = (losses or {}).get(step)
        store.save(state(step), None if loss is None else {"eval_loss_nats": loss, "eval_perplexity": math.inf})
    store.close()
    return found(workdir)


def found(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def restore(workdir: pathlib.Path, like: dict | None = None, step: int | None = None) -> dict:
    like = like or state(0)
    everywhere = jax.tree.map(lambda _: replicated(make_mesh(MeshConfig())), like)
    store = open_(workdir)
    try:
        return store.restore(jax.eval_shape(lambda: like), everywhere, step)
    finally:
        store.close()


def assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_restored_state_equals_the_saved_one_bit_for_bit(tmp_path: pathlib.Path) -> None:
    assert save(tmp_path, 5, 7) == [5, 7]
    assert_same(restore(tmp_path), state(7))
    assert_same(restore(tmp_path, step=5), state(5))
    store = open_(tmp_path)
    assert store.latest_step == 7
    assert {name: store.read_file(name) for name in FILES} == FILES
    store.close()


def test_saving_takes_a_snapshot(tmp_path: pathlib.Path) -> None:
    """The next step may overwrite the buffers while they are still being written."""
    store = open_(tmp_path)
    moving = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    current = jax.jit(lambda s: jax.tree.map(jnp.copy, s))(state(3))
    store.save(current)
    for _ in range(20):
        current = moving(current)
    jax.block_until_ready(current)
    store.close()
    assert_same(restore(tmp_path), state(3))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_writer_waits_for_the_digests(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    """On a CPU it also starts them, from a copy; on an accelerator they are queued before the next step, which overwrites the state."""
    threads: dict[str, str] = {}

    def watch(name: str) -> None:
        function = getattr(checkpoint_snapshot, name)

        def watched(*args: Any) -> Any:
            threads[name] = threading.current_thread().name
            return function(*args)

        monkeypatch.setattr(checkpoint_snapshot, name, watched)

    watch("start_digests")
    watch("finish_digests")
    monkeypatch.setattr(checkpoint_snapshot.jax, "default_backend", lambda: platform)
    save(tmp_path, 7)
    monkeypatch.undo()
    main = threading.current_thread().name
    assert threads["finish_digests"] != main and (threads["start_digests"] == main) == (platform == "tpu")
    assert_same(restore(tmp_path), state(7))


def test_a_snapshot_reuses_the_memory_of_the_last_one() -> None:
    snapshot = checkpoint_snapshot.Snapshot()

    def places(tree: Any) -> list[int]:
        return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]

    first, original = state(1), state(2)
    kept, _ = snapshot.take(first)
    before = places(kept)
    again, digests = snapshot.take(original)
    assert places(again) == before and not set(before) & set(places(original))
    assert digests() == digest_arrays(original)
    assert_same(again, original)


@pytest.mark.parametrize(
    "keys", [{"every_steps": 5}, {"every_steps": None, "local_every_steps": 5}, {"every_steps": None}]
)
def test_memory_is_kept_for_frequent_saves_only(tmp_path: pathlib.Path, keys: dict[str, Any]) -> None:
    """A run that saves at its end, when the step's arrays are free, needs it there only."""
    config = CheckpointConfig(**keys, **({"local_directory": str(tmp_path / "local")} if len(keys) > 1 else {}))
    with Checkpoints(tmp_path / "run", config, {}) as store:
        store.prepare(state(1))
        assert (store._snapshot._kept is not None) == any(keys.values())


def test_a_prepared_snapshot_compiles_nothing_and_takes_no_new_memory() -> None:
    """Else the first save of a run would hold training for both."""
    snapshot, tree, compiled = checkpoint_snapshot.Snapshot(), {"own": jnp.arange(93.0).reshape(31, 3)}, []
    snapshot.reserve(tree)
    assert snapshot._kept is not None
    place = snapshot._kept["own"].unsafe_buffer_pointer()

    def count(event: str, seconds: float, **labels: str | int) -> None:
        compiled.extend([labels] * event.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        kept, _ = snapshot.take(tree)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled and kept["own"].unsafe_buffer_pointer() == place


def test_each_array_is_freed_once_it_is_copied() -> None:
    """So that a restore never holds the state twice."""
    tree = {"a": {"b": jnp.arange(5.0), "c": jnp.arange(7.0)}, "d": jnp.arange(3.0)}
    expected = jax.tree.map(np.array, tree)
    read = [weakref.ref(x) for x in jax.tree.leaves(tree)]
    alive: list[int] = []

    def copy(x: jax.Array) -> jax.Array:
        alive.append(sum(ref() is not None for ref in read))
        return jnp.copy(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_snapshot, "copy_arrays", copy)
        assert_same(checkpoint_snapshot.own_arrays(tree), expected)
    assert alive == [3, 2, 1]


def test_saving_a_step_again_changes_nothing(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 5)
    store = open_(tmp_path)
    store.save({**state(6), "step": jnp.int32(5)})
    store.close()
    assert_same(restore(tmp_path), state(5))


def test_nothing_saved_yet(tmp_path: pathlib.Path) -> None:
    store = open_(tmp_path)
    assert store.latest_step is None
    with pytest.raises(CheckpointError, match=f"No checkpoint found in {tmp_path}/checkpoints"):
        store.restore(state(0), state(0))
    with pytest.raises(CheckpointError, match="No checkpoint found"):
        store.read_file("corpus.json")
    store.close()
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match="No checkpoint found"):
        restore(tmp_path, step=4)


def test_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    assert save(tmp_path, 1, 2, 3, 4, keep=2) == [3, 4]
    assert save(tmp_path, 5, keep=1) == [5]


def test_the_best_are_kept_too_over_any_number_of_restarts(tmp_path: pathlib.Path) -> None:
    losses = {2: 0.5, 3: 0.9, 5: 0.7, 7: 0.6, 9: 0.4}
    keys = dict(losses=losses, keep=1, keep_best=2)
    assert save(tmp_path, 1, 2, 3, 4, **keys) == [2, 3, 4]
    assert save(tmp_path, 5, 6, **keys) == [2, 5, 6]
    assert save(tmp_path, 7, 8, **keys) == [2, 7, 8]
    assert save(tmp_path, 9, 10, **keys) == [2, 9, 10]
    assert save(tmp_path, 11, losses={11: math.nan}, keep=1, keep_best=2) == [2, 9, 11]
    assert save(tmp_path, 12, losses={12: 0.9}, keep=1, keep_best=2) == [2, 9, 12]


def test_among_equally_good_ones_the_newest_is_kept(tmp_path: pathlib.Path) -> None:
    assert save(tmp_path, 1, 2, 3, losses={1: 0.5, 2: 0.5}, keep=1, keep_best=1) == [2, 3]


def test_remains_of_a_killed_save_are_ignored_and_removed(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 5, 7)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "7", folder / "9.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "9.orbax-checkpoint-tmp" / "state")
    assert_same(restore(tmp_path), state(7))
    assert save(tmp_path, 9) == [5, 7, 9]
    assert_same(restore(tmp_path), state(9))


@pytest.mark.parametrize("lost", ["state", "files", "files/manifest.json", "_CHECKPOINT_METADATA", "state/_METADATA"])
def test_an_old_checkpoint_half_deleted_by_a_killed_cleanup_does_no_harm(tmp_path: pathlib.Path, lost: str) -> None:
    save(tmp_path, 5, 7, losses={5: 0.1, 7: 0.2}, keep=2)
    path = tmp_path / "checkpoints" / "5" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_same(restore(tmp_path), state(7))
    assert save(tmp_path, 9, 11, keep=2) == [9, 11]
    assert_same(restore(tmp_path), state(11))


def other_shape() -> dict:
    other = state(0)
    other["params"]["layers"]["dense"]["kernel"] = jnp.zeros((24, 41))
    return other


def other_name() -> dict:
    other = state(0)
    other["params"]["layers"]["tense"] = other["params"]["layers"].pop("dense")
    return other


def with_average() -> dict:
    return state(0) | {"ema": state(0)["params"]}


@pytest.mark.parametrize("like", [other_shape, other_name, with_average])
def test_a_state_that_does_not_fit_is_refused(tmp_path: pathlib.Path, like: Callable[[], dict]) -> None:
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/checkpoints/5 cannot be read.*start in a new --workdir"):
        restore(tmp_path, like())


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES = {
    "missing": pathlib.Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": truncate,
    "flipped": flip,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_is_harmless_or_reported(tmp_path: pathlib.Path, kind: str) -> None:
    """Either the state is restored bit for bit, or the error names the checkpoint and a fix that works."""
    original = tmp_path / "original"
    save(original, 5, 7)
    files = [path.relative_to(original) for path in sorted((original / "checkpoints/7").rglob("*")) if path.is_file()]
    told = []
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(original, workdir)
        DAMAGES[kind](workdir / file)
        try:
            assert_same(restore(workdir), state(7))
        except CheckpointError as error:
            told.append(file)
            assert str(workdir / "checkpoints/7") in str(error) and len(str(error)) < 700
            assert str(error).endswith(f" Remove {workdir}/checkpoints/7 to resume from step 5.")
    assert any("ocdbt.process_0/d/" in str(file) for file in told)  # the arrays themselves
    assert any(file.name == "manifest.json" for file in told)
    shutil.rmtree(workdir / "checkpoints/7")
    assert_same(restore(workdir), state(5))


def test_flipped_bits_in_arrays_are_found(tmp_path: pathlib.Path) -> None:
    """The array file is not self-checking everywhere; the digests of the manifest are."""
    save(tmp_path, 7)
    files = [path for path in (tmp_path / "checkpoints/7/state").rglob("*") if re.fullmatch("[0-9a-f]{32}", path.name)]
    path = max(files, key=lambda path: path.stat().st_size)
    data, errors = path.read_bytes(), []
    for place in np.linspace(0, len(data) - 1, 12).astype(int):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert_same(restore(tmp_path), state(7))
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) >= 6
    assert any(
        re.search(r"is damaged: array \S+ has digest [0-9a-f]{16}, but [0-9a-f]{16} was written", e) for e in errors
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_small_files_are_checked_when_read(tmp_path: pathlib.Path, name: str, kind: str) -> None:
    save(tmp_path, 5, 7)
    DAMAGES[kind](tmp_path / "checkpoints/7/files" / name)
    store = open_(tmp_path)
    with pytest.raises(CheckpointError, match=f"checkpoints/7 is damaged: files/{name} .*resume from step 5"):
        store.read_file(name)
    assert store.read_file(name, step=5) == FILES[name]
    store.close()


def test_manifest(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 5, losses={5: 0.25})
    manifest = json.loads((tmp_path / "checkpoints/5/files/manifest.json").read_text())
    assert manifest["step"] == 5 and manifest["metrics"]["eval_loss_nats"] == 0.25
    assert set(manifest["files"]) == set(FILES)
    assert "params/layers/dense/kernel" in manifest["digests"] and "halted" not in manifest["digests"]


def resume(workdir: pathlib.Path, told: list[str] | None = None, best: bool = False, **keys: Any) -> dict | None:
    """The checkpoint that a run would resume from."""
    everywhere = jax.tree.map(lambda _: replicated(make_mesh(MeshConfig())), state(0))
    store = open_(workdir, **keys)
    try:
        take = store.resume_best if best else store.resume
        log = (told if told is not None else []).append
        return take(lambda step: store.restore(jax.eval_shape(lambda: state(0)), everywhere, step), log)
    finally:
        store.close()


def gone(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def as_file(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def emptied(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def pipe(name: str) -> Callable[[pathlib.Path], None]:
    return lambda path: ((path / name).unlink(missing_ok=True), os.mkfifo(path / name)) and None


def odd_manifest(content: str) -> Callable[[pathlib.Path], None]:
    return lambda path: (path / "files/manifest.json").write_text(content) and None


WRECKS = {
    "dangling link": gone,
    "a file": as_file,
    "empty": emptied,
    "a pipe of Orbax's": pipe("state/_METADATA"),
    "a pipe of ours": pipe("files/manifest.json"),
    "no state": lambda path: shutil.rmtree(path / "state"),
    "state is a file": lambda path: as_file(path / "state"),
    "no files": lambda path: shutil.rmtree(path / "files"),
    "manifest is a folder": lambda path: (
        (path / "files/manifest.json").unlink(),
        (path / "files/manifest.json").mkdir(),
    ),
    "deep manifest": odd_manifest("[" * 100_000),
    "long number": odd_manifest('{"digests": {}, "files": {}, "rank": ' + "1" * 5000 + "}"),
    "a list": odd_manifest("[]"),
    "no digests": odd_manifest('{"digests": 3, "files": {}}'),
    "other digests": odd_manifest('{"digests": {"params": 1}, "files": {}}'),
    "cut manifest of the arrays": lambda path: truncate(path / "state/manifest.ocdbt"),
    "no data": lambda path: shutil.rmtree(path / "state/ocdbt.process_0"),
}


@pytest.mark.parametrize("kind", WRECKS)
def test_a_damaged_checkpoint_is_skipped_and_kept(tmp_path: pathlib.Path, kind: str) -> None:
    save(tmp_path, 5, 7)
    WRECKS[kind](tmp_path / "checkpoints/7")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/checkpoints/7 .* Remove .* to resume from step 5"):
        resume(tmp_path, on_damage="stop")
    told: list[str] = []
    assert_same(resume(tmp_path, told), state(5))
    assert len(told) == 2 and all(line.startswith("WARNING: ") for line in told)
    assert f"{tmp_path}/checkpoints/7 " in told[0] and f"kept in {tmp_path}/checkpoints/damaged/7" in told[0]
    assert os.path.lexists(tmp_path / "checkpoints/damaged/7")
    assert_same(resume(tmp_path, told), state(5))  # and it is not tried again
    assert len(told) == 2
    store = open_(tmp_path)
    store.save(state(7))
    store.close()
    assert_same(resume(tmp_path), state(7))


def test_an_unneeded_pipe_is_not_read(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 5)
    pipe("_CHECKPOINT_METADATA")(tmp_path / "checkpoints/5")
    assert_same(resume(tmp_path), state(5))


def test_none_is_moved_if_none_is_complete(tmp_path: pathlib.Path) -> None:
    assert resume(tmp_path) is None
    save(tmp_path, 3, 5, 7)
    for step, kind in ((3, "empty"), (5, "a file"), (7, "no data")):
        WRECKS[kind](tmp_path / f"checkpoints/{step}")
    with pytest.raises(CheckpointError, match="None of the 3 checkpoints .* Nothing was moved"):
        resume(tmp_path)
    assert found(tmp_path) == [3, 5, 7]


def test_checkpoints_that_do_not_fit_are_not_moved(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 5, 7)
    store = open_(tmp_path)
    everywhere = jax.tree.map(lambda _: replicated(make_mesh(MeshConfig())), other_shape())
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints"):
        store.resume(lambda step: store.restore(jax.eval_shape(other_shape), everywhere, step), print)
    store.close()
    assert found(tmp_path) == [5, 7]


def test_unreadable_is_not_damaged(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5, 7)
    read = pathlib.Path.read_bytes

    def refuse(path: pathlib.Path) -> bytes:
        if path.parts[-3:] == ("7", "files", "manifest.json"):
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match="7 cannot be read .PermissionError.* not damaged: give"):
        resume(tmp_path)
    assert found(tmp_path) == [5, 7]


def test_a_full_disk_is_reported_with_what_was_filling_it(tmp_path: pathlib.Path) -> None:
    """The unfinished checkpoint is gone when the free space is reported, so naming only the file that hit the full disk would explain nothing."""
    with pytest.raises(OSError, match="No space") as caught, open_(tmp_path) as store:
        store.save(state(5))
        store.wait()
        (tmp_path / "checkpoints/7.orbax-checkpoint-tmp").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
    assert caught.value.__notes__[0].startswith("A checkpoint takes about ")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_the_best_complete_one(tmp_path: pathlib.Path) -> None:
    save(tmp_path, 3, 5, 7, losses={3: 0.2, 5: 0.1, 7: 0.3})
    WRECKS["no data"](tmp_path / "checkpoints/5")
    told: list[str] = []
    assert_same(resume(tmp_path, told, best=True), state(3))
    assert "damaged/5" in told[0] and found_steps(tmp_path) == [3, 7]


def found_steps(workdir: pathlib.Path) -> list[int]:
    return checkpoint_steps(workdir / "checkpoints")


def test_names_that_are_not_steps(tmp_path: pathlib.Path) -> None:
    for name in ("007", "7.damaged", "damaged", "-1", "1e3", "٣", "²", "tmp", "12", "0"):
        (tmp_path / name).mkdir()
    assert checkpoint_steps(tmp_path) == [0, 12]
    assert checkpoint_steps(tmp_path / "nowhere") == []
    assert (newest_step(tmp_path), newest_step(tmp_path, below=12), newest_step(tmp_path / "nowhere")) == (12, 0, None)

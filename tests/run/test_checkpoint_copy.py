"""Checkpoints in a bucket that Orbax cannot write to, against a stand-in for Google Cloud Storage that is treated as such a one."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from helpers.gcs_server import GcsServer, served_here
from lm_research.common import bucket_copies, buckets
from lm_research.common.paths import as_path
from lm_research.config import CheckpointConfig
from lm_research.config.run_files import COMPLETE, checkpoint_steps
from lm_research.errors import CheckpointError
from lm_research.run import run_directory
from lm_research.run.checkpoint import Checkpoints

pytest.importorskip("gcsfs")
RUN, FOLDER = "gs://bucket/run", "run/checkpoints/"


@pytest.fixture(autouse=True)
def _copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_ARRAYS", ())


def state(step: int) -> dict[str, Any]:
    return {"step": jnp.int32(step), "params": {"w": jnp.arange(1000.0) * step}, "halted": jnp.int32(-1)}


@contextlib.contextmanager
def opened(*steps: int, keep: int = 2) -> Iterator[Checkpoints]:
    """The checkpoints of a run, after saving at these steps."""
    store = Checkpoints(as_path(RUN), CheckpointConfig(keep=keep, keep_best=0), {"corpus.json": b"{}"})
    with store:
        for step in steps:
            store.save(state(step))
        yield store
        store.close()


def resumed(store: Checkpoints, log: Any = print) -> int:
    """Resume; return the step, after checking its arrays."""
    here = jax.tree.map(lambda x: x.sharding, state(0))
    found = store.resume(lambda step: store.restore(jax.eval_shape(lambda: state(0)), here, step), log)
    assert found is not None
    assert (found["params"]["w"] == state(int(found["step"]))["params"]["w"]).all()
    return int(found["step"])


def steps(server: GcsServer) -> dict[str, bool]:
    """The checkpoints that the bucket has something of, and whether each is complete."""
    names = [name.removeprefix(FOLDER).split("/") for name in server.names(prefix=FOLDER)]
    return {parts[0]: [parts[0], COMPLETE] in names for parts in names}


def test_each_is_copied_and_the_next_start_fetches_only_what_it_reads() -> None:
    with served_here(share=0.02, latency=0.01) as server:
        with opened(6, 12, 18) as store:
            folder = store._copy.folder
        assert steps(server) == {"12": True, "18": True} and not folder.exists()
        for step in ("12", "18"):
            written = {name: server.objects["bucket", name].generation for name in server.names(prefix=FOLDER + step)}
            assert max(written, key=written.__getitem__) == f"{FOLDER}{step}/{COMPLETE}" and len(written) > 5
        with opened() as store:
            assert store.steps == [12, 18] and resumed(store) == 18
            folder = store._copy.folder
            assert not (folder / "12/state").exists() and (folder / "18/state").is_dir()
            store.save(state(24))
        assert steps(server) == {"18": True, "24": True}


def test_what_a_killed_process_has_copied_in_part_is_removed() -> None:
    with served_here() as server:
        with opened(6):
            pass
        for name in ("12/state/d/1", "12/files/manifest.json", "damaged/3/state/d/1"):
            server.put("bucket", FOLDER + name, b"1", {})
        assert checkpoint_steps(as_path(RUN) / "checkpoints") == [6]
        with opened() as store:
            assert store.steps == [6] and resumed(store) == 6
        assert steps(server) == {"6": True, "damaged": False}


def test_a_damaged_one_is_kept_aside_in_the_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    with served_here() as server:
        with opened(6, 12):
            pass
        lost = max(
            server.names(prefix=f"{FOLDER}12/state/d/"), key=lambda name: len(server.objects["bucket", name].data)
        )
        del server.objects["bucket", lost]
        with opened() as store:
            assert resumed(store) == 6
            output = capsys.readouterr().out
            assert f"{RUN}/checkpoints/12 " in output and f"is kept in {RUN}/checkpoints/damaged/12." in output
            assert "lm_research-" not in output
            assert steps(server) == {"6": True, "damaged": False}
            store.save(state(12))
        assert steps(server) == {"6": True, "12": True, "damaged": False}


def test_a_copy_that_fails_is_repeated_and_what_it_replaces_stays_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_copies, "SECONDS", 600.0)  # not in the background
    with served_here() as server, opened(6, keep=1) as store:
        store.wait()
        sent, write = [], buckets.write

        def fail_once(path: pathlib.Path, content: bytes) -> None:
            sent.append(path)
            if len(sent) == 3:
                raise OSError("the network")
            write(path, content)

        monkeypatch.setattr(buckets, "write", fail_once)
        store.save(state(12))
        store._manager.wait_until_finished()
        with pytest.raises(OSError, match="the network"):
            store._copy.upload()
        assert steps(server) == {"6": True, "12": False}
        store.wait()
        assert steps(server) == {"12": True}
        assert len(sent) == len(set(sent)) + 1  # what had arrived was not sent again


def test_the_bucket_keeps_what_orbax_only_forgets() -> None:
    """After a write that failed, Orbax lists neither the new checkpoint nor the one that it would have replaced."""
    with served_here() as server, opened(6) as store:
        store.wait()
        store._copy.kept = tuple
        store._copy.upload()
        assert steps(server) == {"6": True}


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match=f"--workdir={RUN} takes runs of one process only, and this one has 2: "):
        run_directory.check_shared(as_path(RUN))

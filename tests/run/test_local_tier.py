"""Emergency checkpoints: the newest complete step is restored, whichever process is killed before whichever write, and whichever host is lost."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.train_helpers import ROOT
from lm_research.common.disk import DiskError
from lm_research.config import CheckpointConfig
from lm_research.errors import CheckpointError
from lm_research.run import local_shards, local_tier
from lm_research.run.checkpoint import Checkpoints


def pod(action: str, folder: pathlib.Path, kind: str, *kill: int) -> subprocess.CompletedProcess[str]:
    """Run on_two_hosts.py in two processes."""
    command = [sys.executable, str(ROOT / "launch/local_pod.py"), "--devices_per_process=1", "--module=on_two_hosts"]
    settings = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent)}
    arguments = [action, str(folder / "run"), str(folder / "local"), kind, *map(str, kill)]
    return subprocess.run([*command, "--", *arguments], env=settings, capture_output=True, text=True, timeout=280)


def resumed(folder: pathlib.Path, kind: str) -> dict:
    """What both processes resume from, the same in both."""
    done = pod("resume", folder, kind)
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / f"run/resumed_{number}.json").read_text()) for number in (0, 1)]
    assert found[0] | {"log": []} == found[1] | {"log": []}
    step = found[0]["step"]
    assert found[0]["sum"] == 4095 * 2048 + 4096 * step + 24 * step  # each number of a and b grows by one a step
    return found[0]


def hosts(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / "local" / f"host{number}" for number in (0, 1)]


def test_a_lost_host_and_damage(tmp_path: pathlib.Path) -> None:
    """Of a state that is divided over both hosts, either host has all of the newest two steps."""
    done = pod("save", tmp_path, "fsdp")
    assert done.stdout.count("saved") == 2, done.stderr
    for host in hosts(tmp_path):
        assert sorted(int(path.name) for path in host.glob("*/*/*")) == [4]
    shutil.copytree(tmp_path, tmp_path / "damaged")
    shutil.rmtree(hosts(tmp_path)[1])
    found = resumed(tmp_path, "fsdp")
    assert (found["step"], found["tier"], found["log"]) == (4, "local", [])
    for path in (tmp_path / "damaged/local").glob("host*/*/*/4/0"):  # both copies of what process 0 has
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    found = resumed(tmp_path / "damaged", "fsdp")
    assert (found["step"], found["tier"]) == (1, "run directory")
    assert "the local checkpoint of step 4 is damaged, and not used" in found["log"][0]


# What a process writes of steps 2, 3 and 4: content and name of its own file and, if the state is divided, of the other's copy.
WRITES = [("fsdp", write) for write in range(12)] + [("dp", write) for write in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("kind", "write"), WRITES)
def test_killed_before_any_write(tmp_path: pathlib.Path, kind: str, write: int, victim: int) -> None:
    """The step before the one that was being written is complete, unless that was the first: then it is the run directory's."""
    done = pod("save", tmp_path, kind, victim, write)
    assert done.returncode not in (0, 2), done.stderr
    per_step = 4 if kind == "fsdp" else 2
    found = resumed(tmp_path, kind)
    assert found["step"] >= 1 + write // per_step
    assert found["tier"] == ("local" if found["step"] > 1 else "run directory")
    assert resumed(tmp_path, kind)["step"] == found["step"]


def one(folder: pathlib.Path, *steps: int) -> Checkpoints:
    """The checkpoints of a run of one process, after local saves."""
    config = CheckpointConfig(local_every_steps=1, local_directory=str(folder / "local"))
    store = Checkpoints(folder / "run", config, {"corpus.json": b"{}"})
    for step in steps:
        store.save_local(state(step), lines=step)
    return store


def state(step: int) -> dict:
    return {"step": jnp.int32(step), "params": {"w": jnp.arange(100.0) * step}, "halted": jnp.int32(-1)}


def test_the_newest_tier_wins(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    store = one(tmp_path, 3)
    store.save(state(2))
    store.wait()
    shapes, here = state(0), {name: state(0)["step"].sharding for name in ("step", "halted")}
    shardings = here | {"params": {"w": here["step"]}}
    found = store.resume_local(shapes, shardings, lambda *_: None)
    assert int(found["step"]) == 3 and np.array_equal(found["params"]["w"], np.arange(100.0) * 3)
    assert store.lines(3) == 3
    store.save(state(4))
    store.wait()
    assert store.resume_local(shapes, shardings, lambda *_: None) is None
    store.close()
    assert list((tmp_path / "local").iterdir()) == []  # all is saved in the run directory


@pytest.mark.parametrize("fails", [False, True])
def test_what_belongs_to_a_step_is_stored_before_it(tmp_path: pathlib.Path, fails: bool) -> None:
    """As the lines of metrics.jsonl of a run in a bucket are; without delay if the bucket fails."""
    written: list[tuple[float, int]] = []

    def before(patience: float = 600.0) -> None:
        written.append((patience, len(list((tmp_path / "local").glob("*/0/3/0")))))
        if fails:
            raise DiskError("no bucket")

    (tmp_path / "run").mkdir()
    config = CheckpointConfig(local_every_steps=1, local_directory=str(tmp_path / "local"))
    with Checkpoints(tmp_path / "run", config, {"corpus.json": b"{}"}, before=before) as store:
        store.save_local(state(3), lines=3)
        store._local.finish()
        assert written == [(0.0, 0)] and len(list((tmp_path / "local").glob("*/0/3/0"))) == 1


def test_steps_in_doubt_are_dropped(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    store = one(tmp_path, 3)
    store._local.finish()
    assert len(list((tmp_path / "local").glob("*/0/3/0"))) == 1
    store.drop_local(3)
    assert len(list((tmp_path / "local").glob("*/0/3/0"))) == 1
    store.distrust()
    assert list((tmp_path / "local").glob("*/0/3")) == []
    store.close()


def test_strangers_get_nothing(tmp_path: pathlib.Path) -> None:
    server = local_shards.ShardServer(tmp_path)
    address = ["localhost", server.port, "gueß"]
    with pytest.raises(OSError, match="answered 403"):  # although the answer is known before all is sent
        local_shards.send(address, 1, 0, local_shards.pack({}, {("a", ()): np.ones(2**23)}))
    assert local_shards.receive(address, 1, ("a", ())) is None and list(tmp_path.iterdir()) == []
    server.close()


def test_a_copy_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    """The sender learns why, although the reason is known before all is sent."""
    (tmp_path / "1").write_text("")
    server = local_shards.ShardServer(tmp_path)
    with pytest.raises(OSError, match="answered 507 File exists"):
        local_shards.send(
            ["localhost", server.port, server.token], 1, 0, local_shards.pack({}, {("a", ()): np.ones(2**23)})
        )
    server.close()


def test_a_directory_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "local").write_text("")
    with pytest.raises(CheckpointError, match=f"local_directory={tmp_path}/local cannot be written: Not a directory"):
        one(tmp_path)


def test_an_id_that_cannot_be_read_at_the_moment_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket whose network fails; with another id, the emergency checkpoints would not be found."""
    first = local_tier._run_id(tmp_path)
    with monkeypatch.context() as failing:
        failing.setattr(pathlib.Path, "read_text", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "no network")))
        with pytest.raises(OSError, match="no network"):
            local_tier._run_id(tmp_path)
    assert local_tier._run_id(tmp_path) == first

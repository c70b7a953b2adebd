"""A device that computes something wrong is found and named; healthy ones are not, and the run's results do not change.

A fault flips the lowest bit of one number in one simulated device's part of a result.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from helpers.devices import eight_devices
from helpers.train_helpers import Lab, checkpoints, metrics, summary
from lm_research.run import learner, recheck
from lm_research.run.recheck import copy_to_devices, copy_to_host, find_suspects

HERE = pathlib.Path(__file__).parent


def runs(shifts: list[int], says: Callable[[int, int, int], int], devices: int, same: int = 1) -> list[recheck.Run]:
    """The values of `says`(device, rows, number of the run), for devices that hold the rows of others."""
    return [
        (shift, np.array([[says(d, (d + shift) % devices // same, number)] for d in range(devices)], np.uint32))
        for number, shift in enumerate(shifts)
    ]


@pytest.mark.parametrize(
    ("shifts", "devices", "same", "wrong", "named"),
    [
        ([0, 1], 4, 1, lambda d, rows, run: 0, []),
        ([0, 1, 2, 3], 4, 1, lambda d, rows, run: d == 2, [2]),  # always
        ([0, 1, 2, 3], 4, 1, lambda d, rows, run: (d, run) == (2, 0), [2]),  # once
        ([0, 1, 2, 3], 4, 1, lambda d, rows, run: d == 2 and rows == 3, [2]),  # with some rows only
        ([0, 1, 2, 0], 3, 1, lambda d, rows, run: d == 0, [0]),
        (
            [0, 1, 0, 1],
            2,
            1,
            lambda d, rows, run: d == 1,
            [0, 1],
        ),  # the two differ: which one is wrong cannot be decided
        ([0, 1, 0, 1], 2, 1, lambda d, rows, run: (d, run) == (1, 1), [1]),  # but this one contradicts itself
        ([0, 1, 2, 3], 8, 2, lambda d, rows, run: d == 5, [5]),  # two devices have the same rows
        ([0, 1, 2, 3], 8, 8, lambda d, rows, run: d == 5, [5]),
    ],
)
def test_suspect_devices(shifts: list[int], devices: int, same: int, wrong: Callable, named: list[int]) -> None:
    """By hand: the digest of rows is 10 times their number, plus 1 where a device is wrong."""
    assert find_suspects(runs(shifts, lambda *at: 10 * at[1] + int(wrong(*at)), devices, same), same) == named


def test_a_parked_state_outlives_the_step() -> None:
    state = {"a": jax.numpy.arange(6.0).reshape(2, 3), "n": jax.numpy.int32(3)}
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    kept = copy_to_host(state)
    overwrite(state)
    back = copy_to_devices(kept)
    assert np.array_equal(back["a"], np.arange(6.0).reshape(2, 3)) and int(back["n"]) == 3
    overwrite(back)
    assert np.array_equal(kept["a"], np.arange(6.0).reshape(2, 3))


@pytest.fixture(
    scope="module", params=["all", pytest.param("dp", marks=pytest.mark.slow)]
)  # devices with parts of parameters, and with whole ones
def eight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results on eight devices, by fault."""
    command = [sys.executable, str(HERE / "faulty_devices.py"), str(tmp_path_factory.mktemp("faulty")), request.param]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_healthy_devices_pass_and_change_nothing(eight: dict) -> None:
    """Dropout is on: it must not depend on which device has the rows."""
    assert eight["healthy"] == {"equal": True, "passed": 2}


@pytest.mark.parametrize(
    ("fault", "device", "how"),
    [("always", 3, "on different devices"), ("once", 5, "on different devices"), ("update", 6, "twice")],
)
def test_a_faulty_device_is_named(eight: dict, fault: str, device: int, how: str) -> None:
    said = eight[fault]
    assert said["passed"] <= 1
    assert said["error"].startswith("Step 2: ") and how in said["error"]
    assert re.search(r"on devices? (.*?)\)", said["error"])[0] == f"on device {device} (cpu, process 0)"
    assert "any of them" not in said["error"]


def test_a_run_with_a_fault_stops_and_resumes_from_a_sound_checkpoint(
    lab: Lab,
    bert_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Steps 8 and 16 are checked. The program is called twice for each: a bit that flips in its 17th call belongs to step 16."""
    compile_step, count = learner.compile_step, iter(range(1, 1000))

    def compiled(*args: Any) -> Callable:
        program = compile_step(*args)

        def run(*args: Any, **named: Any) -> Any:
            state = program(*args, **named)
            if next(count) == 17:
                leaves, structure = jax.tree.flatten(state)
                place = max(i for i, leaf in enumerate(leaves) if leaf.ndim and leaf.dtype == np.float32)
                leaves[place] = jax.device_put(
                    np.nextafter(np.array(leaves[place]), np.float32(9)), leaves[place].sharding
                )
                state = jax.tree.unflatten(structure, leaves)
            return state

        return run

    monkeypatch.setattr(learner, "compile_step", compiled)
    flags = ["--config.train.check_every=8", "--config.checkpoint.keep=9"]
    assert lab.train(tmp_path, *flags) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(
        "error: Step 16: the update was computed twice on the same devices, and the bits differ"
    )
    assert "device 0 (cpu, process 0)" in said
    assert "Checkpoint 6 is the newest from before the last check that found nothing (step 8)" in said
    assert f"{tmp_path}/checkpoints/12 may hold" in said and "resumes from step 6" in said
    assert checkpoints(tmp_path) == [6, 12] and max(line["step"] for line in metrics(tmp_path)) == 14
    assert json.loads((tmp_path / "checked.json").read_text()) == {"step": 8}

    monkeypatch.setattr(learner, "compile_step", compile_step)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    assert lab.train(tmp_path, *flags) == 0
    assert summary(tmp_path)["digests"] == summary(bert_run)["digests"]
    assert summary(tmp_path)["seconds"]["check"] > 0
    assert summary(bert_run)["seconds"]["check"] == 0
    timed = ("seconds", "per_second", "mfu", "goodput", "time")
    lines = [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in metrics(tmp_path)]
    assert lines == [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in metrics(bert_run)]

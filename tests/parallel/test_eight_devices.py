"""Eight devices compute what one does, and each holds only its part."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
ONE = (1, 1, 1)
# Meshes (data, fsdp, tensor). Compiling takes nearly all the time, so each family has half of them by default.
QUICK = {"bert": [(8, 1, 1), (1, 4, 2)], "gpt2": [(1, 8, 1), (2, 2, 2)]}
REST = {"bert": QUICK["gpt2"], "gpt2": QUICK["bert"]}
ZERO1 = {"bert": [(8, 1, 1, 1)], "gpt2": [(4, 1, 2, 1)]}
STACK = {"bert": "encoder", "gpt2": "decoder"}


def run(plan: dict[str, list], folder: pathlib.Path) -> dict[str, Any]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "272"}
    plan = {family: [ONE, *meshes] for family, meshes in plan.items()}
    command = [sys.executable, str(HERE / "eight_devices.py"), str(folder), json.dumps(plan)]
    environment = os.environ | flags | {"PYTHONPATH": os.pathsep.join(map(str, HERE.parents[:2]))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def zero1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(ZERO1, tmp_path_factory.mktemp("zero1"))


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(REST, tmp_path_factory.mktemp("rest"))


def check_training(one: dict, many: dict) -> None:
    losses = [metrics["loss_nats"] for metrics in one["metrics"]]
    assert len(set(losses)) == 3 and np.isfinite(losses).all()
    for ours, theirs in zip(many["metrics"], one["metrics"], strict=True):
        assert ours["loss_nats"] == pytest.approx(theirs["loss_nats"], rel=1e-5)
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4), name
    # Adam divides by the gradient's size, so where that is mere rounding a parameter may move by up to the learning
    # rate, 1e-3, each step; all but a few have the same gradient and the same value.
    difference = np.abs(np.subtract(many["params"], one["params"]))
    assert difference.mean() < 1e-6 and difference.max() < 3e-3


@pytest.mark.parametrize(("family", "mesh"), [(family, mesh) for family in QUICK for mesh in QUICK[family]])
def test_training_equals_one_device(family: str, mesh: tuple, found: dict) -> None:
    check_training(found[family][str(ONE)], found[family][str(mesh)])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mesh"), [(family, mesh) for family in REST for mesh in REST[family]])
def test_training_equals_one_device_on_the_other_meshes(family: str, mesh: tuple, rest: dict) -> None:
    check_training(rest[family][str(ONE)], rest[family][str(mesh)])


# The model: V 64, D 32, H 4 x K 8, F 64, L 16, two layers.
SHARDS = {
    (8, 1, 1): {"embeddings/tokens": [64, 32], "layers/attention/query/kernel": [2, 32, 4, 8]},
    (1, 8, 1): {
        "embeddings/tokens": [64, 4],
        "embeddings/positions": [16, 4],
        "layers/attention/query/kernel": [2, 4, 4, 8],
        "layers/feed_forward/down/kernel": [2, 64, 4],
    },
    (1, 4, 2): {
        "embeddings/tokens": [32, 8],
        "layers/attention/query/kernel": [2, 8, 2, 8],
        "layers/attention/query/bias": [2, 2, 8],
        "layers/attention/output/kernel": [2, 2, 8, 8],
        "layers/feed_forward/up/kernel": [2, 8, 32],
    },
    (2, 2, 2): {"embeddings/tokens": [32, 16], "layers/feed_forward/up/kernel": [2, 16, 32]},
}


@pytest.mark.parametrize("part", ["params", "mu", "nu"])
def test_devices_hold_only_their_part_after_training(part: str, found: dict) -> None:
    for family, meshes in QUICK.items():
        for mesh in meshes:
            shards = found[family][str(mesh)]["shards"][part]
            for name, shape in SHARDS[mesh].items():
                assert shards[f"{STACK[family]}/{name}"] == [shape], (family, mesh, name)


@pytest.mark.parametrize("family", ZERO1)
def test_moments_divided_over_data_train_alike(family: str, zero1: dict) -> None:
    """ZeRO-1 (Rajbhandari et al. 2019): the same steps; parameters whole on each device of the data axis, moments in parts."""
    (mesh,) = ZERO1[family]
    one, many = (zero1[family][str(shape)] for shape in (ONE, mesh))
    check_training(one, many)

    def held(part: str) -> float:
        return sum(np.prod(shapes[0]) for shapes in many["shards"][part].values())

    data = mesh[0]
    assert 1 / data <= held("nu") / held("params") < 1 / data + 0.05 and held("mu") == held("nu")


def test_a_device_of_an_fsdp_mesh_holds_about_an_eighth(found: dict) -> None:
    def held(mesh: tuple) -> float:
        return sum(np.prod(shapes[0]) for shapes in found["gpt2"][str(mesh)]["shards"]["nu"].values())

    # Undivided are norms and the biases of the heads' and the feed-forward's inner width.
    assert 1 / 8 < held((1, 8, 1)) / held(ONE) < 1 / 8 + 0.06


def test_initial_parameters_do_not_depend_on_the_mesh(found: dict) -> None:
    # 0.02 times a function of the same random bits; the compiler may fuse its arithmetic differently.
    assert found["initial"] < 1e-8


def test_dropout_does_not_depend_on_the_mesh(found: dict) -> None:
    assert found["dropout"] == [True, True, True]

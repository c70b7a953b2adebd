"""Eight devices compute what one does, and each holds only its part."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from helpers.devices import eight_devices

HERE = pathlib.Path(__file__).parent
# Compiling takes nearly all the time, so each preset is compiled for one family by default.
QUICK = {
    "bert": ["shard_map"],
    "gpt2": ["fsdp", "fsdp data=2 context=2 tensor=2", "dp data=4 tensor=2 zero1"],
    "t5": ["fsdp+tensor tpu"],
    "mixtral": ["fsdp data=2 expert=2"],
}
# Of these only the initial state is divided by default.
PLACED = {"gpt2+muon": ["fsdp data=2 context=2 tensor=2"], "bert+lora": ["fsdp+tensor"]}
ALL = [
    "dp",
    "dp zero1",
    "dp+context",
    "dp+tensor",
    "fsdp",
    "fsdp+context",
    "fsdp+tensor",
    "fsdp+context+tensor",
    "shard_map",
    "fsdp data=2 context=2 tensor=2",
    "fsdp tensor=2 rules:vocab=fsdp+tensor,embed=none,mlp=fsdp",
]
STACK = {"bert": "encoder", "gpt2": "decoder", "t5": "decoder"}
LONG = dict.fromkeys(STACK, ALL) | PLACED | {"mixtral": ["fsdp data=2 expert=2", "dp expert=4 tensor=2"]}
LONG["t5"] = [*ALL, "fsdp+tensor tpu"]
ZERO1 = "dp data=4 tensor=2 zero1"


def run(plan: dict[str, list], folder: pathlib.Path, steps: int) -> dict[str, Any]:
    plan = {family: ["one", *meshes] for family, meshes in plan.items()}
    given = (str(folder), str(steps), json.dumps(plan), json.dumps(PLACED))
    command = [sys.executable, str(HERE / "eight_devices.py"), *given]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(QUICK, tmp_path_factory.mktemp("quick"), steps=3)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(LONG, tmp_path_factory.mktemp("long"), steps=20)


def check_training(one: dict, many: dict) -> None:
    losses = [metrics["loss_nats"] for metrics in one["metrics"]]
    assert len(set(losses)) == len(losses) and np.isfinite(losses).all()
    assert [metrics["loss_nats"] for metrics in many["metrics"]] == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(many["metrics"], one["metrics"], strict=True):
        for name, value in theirs.items():  # a gradient's norm is more sensitive to rounding than the loss
            assert ours[name] == pytest.approx(value, rel=1e-3 if name == "grad_norm" else 1e-4), name
    # Adam divides by the gradient's size, so where that is mere rounding a parameter may move by up to the learning
    # rate, 1e-3, each step; all but a few have the same gradient and the same value.
    difference = np.abs(np.subtract(many["params"], one["params"]))
    assert difference.mean() < 1e-6 * len(losses) / 3 and difference.max() < 1e-3 * len(losses)


@pytest.mark.parametrize(("family", "mesh"), [(family, mesh) for family in QUICK for mesh in QUICK[family]])
def test_training_equals_one_device(family: str, mesh: str, found: dict) -> None:
    check_training(found[family]["one"], found[family][mesh])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mesh"), [(family, mesh) for family in LONG for mesh in LONG[family]])
def test_twenty_steps_equal_one_device(family: str, mesh: str, long: dict) -> None:
    check_training(long[family]["one"], long[family][mesh])


# The model: V 64, D 32, H 4 x K 8, F 64, L 16, two layers.
SHARDS = {
    "dp": {"embeddings/tokens": [64, 32], "layers/attention/query/kernel": [2, 32, 4, 8]},
    "fsdp": {
        "embeddings/tokens": [64, 4],
        "embeddings/positions": [64, 4],
        "layers/attention/query/kernel": [2, 4, 4, 8],
        "layers/feed_forward/down/kernel": [2, 64, 4],
    },
    "fsdp+tensor": {  # fsdp 2, tensor 4
        "layers/attention/query/kernel": [2, 16, 1, 8],
        "layers/attention/output/kernel": [2, 1, 8, 16],
        "layers/feed_forward/up/kernel": [2, 16, 16],
    },
    "fsdp data=2 context=2 tensor=2": {"embeddings/tokens": [32, 32], "layers/feed_forward/up/kernel": [2, 32, 32]},
}


@pytest.mark.parametrize("part", ["params", "mu", "nu"])
def test_devices_hold_only_their_part_after_training(part: str, found: dict) -> None:
    for family, meshes in QUICK.items():
        for mesh in meshes:
            shards = found[family][mesh]["shards"][part]
            for name, shape in SHARDS.get(mesh.removesuffix(" tpu"), {}).items():
                assert shards[f"{STACK[family]}/{name}"] == [shape], (family, mesh, name)


def test_adapters_and_their_moments_are_divided(found: dict) -> None:
    """A as the kernel's inputs, fsdp 2, B as its heads, tensor 4. Nothing of the base has moments."""
    for part in ("params", "mu", "nu"):
        shards = found["placed"]["bert+lora"]["fsdp+tensor"][part]
        assert shards["encoder/layers/attention/query/lora_a"] == [[2, 16, 4]]
        assert shards["encoder/layers/attention/query/lora_b"] == [[2, 4, 1, 8]]
        assert ("encoder/embeddings/tokens" in shards) == (part == "params")


def test_muon_has_no_second_moments_of_matrices(found: dict) -> None:
    shards = found["placed"]["gpt2+muon"]["fsdp data=2 context=2 tensor=2"]
    kernel = "decoder/layers/feed_forward/up/kernel"
    assert shards["mu"][kernel] == [[2, 32, 32]]
    assert kernel not in shards["nu"] and "decoder/embeddings/tokens" in shards["nu"]


def test_moments_divided_over_data(found: dict) -> None:
    """ZeRO-1 (Rajbhandari et al. 2019): parameters whole on each of the data axis' 4 devices, moments in parts."""

    def held(part: str) -> float:
        return sum(np.prod(shapes[0]) for shapes in found["gpt2"][ZERO1]["shards"][part].values())

    assert 1 / 4 <= held("nu") / held("params") < 1 / 4 + 0.05 and held("mu") == held("nu")


def test_a_device_of_an_fsdp_mesh_holds_about_an_eighth(found: dict) -> None:
    def held(mesh: str) -> float:
        return sum(np.prod(shapes[0]) for shapes in found["gpt2"][mesh]["shards"]["nu"].values())

    # Undivided are norms and the biases of the heads' and the feed-forward's inner width.
    assert 1 / 8 < held("fsdp") / held("one") < 1 / 8 + 0.06


def test_initial_parameters_do_not_depend_on_the_mesh(found: dict) -> None:
    # 0.02 times a function of the same random bits; the compiler may fuse its arithmetic differently.
    assert found["initial"] < 1e-8


def test_dropout_does_not_depend_on_the_mesh(found: dict) -> None:
    assert found["dropout"] == [True, True, True]


def test_attention_kernels_do_not_depend_on_the_mesh(found: dict) -> None:
    assert len(found["attention"]) == 6 and max(found["attention"]) < 1e-5


def test_quantized_products_do_not_depend_on_the_mesh(found: dict) -> None:
    if "quantized" not in found:
        pytest.skip("needs the extra quant")
    assert max(found["quantized"]) < 1e-5

"""Digests and checkpoints do not depend on the mesh: one device here, eight simulated ones in another process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_eight_devices import SHAPES, make_shapes

from helpers.devices import eight_devices
from lm_research.config import CheckpointConfig, MeshConfig
from lm_research.models.digest import digest_arrays
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import replicated
from lm_research.run.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]


def state() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(size=x.shape) * 100, x.dtype)

    return jax.tree.map(draw, make_shapes()) | {"step": jnp.int32(7), "halted": jnp.int32(-1)}


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, pathlib.Path]:
    """The other process's results for a checkpoint from here, and the one it wrote."""
    folder = tmp_path_factory.mktemp("meshes")
    store = Checkpoints(folder / "one", CheckpointConfig(), {})
    store.save(state())
    store.close()
    script = pathlib.Path(__file__).with_name("on_eight_devices.py")
    command = [sys.executable, str(script), str(folder / "one"), str(folder / "eight")]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder / "eight"


def digests() -> dict[str, str]:
    return digest_arrays({name: value for name, value in state().items() if name != "halted"})


def test_a_checkpoint_of_one_device_restores_onto_eight_with_the_same_digests(there_and_back: tuple) -> None:
    seen, _ = there_and_back
    assert seen["devices"] == 8
    assert seen["digests"] == {name: digests() for name in SHAPES}


def test_a_checkpoint_of_eight_devices_restores_onto_one(there_and_back: tuple) -> None:
    _, folder = there_and_back
    everywhere = jax.tree.map(lambda _: replicated(make_mesh(MeshConfig())), make_shapes())
    store = Checkpoints(folder, CheckpointConfig(), {})
    restored = store.restore(make_shapes(), everywhere)
    store.close()
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state()), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

"""Run by test_eight_devices.py in a process with eight simulated devices; prints its results as JSON.

Arguments: a folder to work in, how many steps, what to train on which meshes as JSON, {family: [mesh, ...]}, and in the same form
what to place on them without training. A family with "+muon" has that optimizer, one with "+lora" adapters. A mesh is a preset and sizes in words, as "fsdp tensor=2" or "dp zero1"; "one" is
a single device. With "tpu" layers compute as they do there.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from helpers import few, tiny
from lm_research.config import Config, MeshConfig
from lm_research.data.sampler import BatchBuilder
from lm_research.data.store import TokenStore
from lm_research.models import layers
from lm_research.models.adapters import adapt
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.tpu import tpu_attend
from lm_research.models.layers import dropout
from lm_research.models.quantization import quantized_product
from lm_research.objectives import build_objective, cross_entropy, define
from lm_research.objectives.balanced import balanced
from lm_research.parallel import hardware
from lm_research.parallel.batches import check_batch, local_rows, to_global
from lm_research.parallel.mesh import AXES, make_mesh
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, state_shardings, window_means
from lm_research.training.step import jit_train_step, make_train_step

OBJECTIVE = {"bert": "masked_lm", "gpt2": "causal_lm", "t5": "span_corruption", "mixtral": "causal_lm"}


def config_of(family: str, mesh: str = "one", steps: int = 3) -> Config:
    model = dict(hidden_size=32, num_heads=4, intermediate_size=64, dropout_rate=0.1, attention_dropout_rate=0.1)
    family, _, special = family.partition("+")
    more = {
        "muon": dict(optimizer=dict(name="muon", learning_rate=1e-3, adam_learning_rate=1e-3)),
        "lora": dict(optimizer=dict(learning_rate=1e-3), lora=dict(rank=4, dropout=0.1, modules_to_save="masked_lm")),
        "": dict(optimizer=dict(learning_rate=1e-3)),
    }[special]
    preset, *sizes = ("dp" if mesh == "one" else mesh).split()
    given = {"preset": preset, "zero1": "zero1" in sizes}
    given["rules"] = next((word.removeprefix("rules:") for word in sizes if word.startswith("rules:")), "")
    given |= {axis: int(size) for axis, size in (word.split("=") for word in sizes if word.count("=") == 1)}
    train = dict(batch_size=16, accumulation_steps=2, num_steps=steps)
    return few.setting(OBJECTIVE[family], family, model=model, train=train, mesh=given, **more)


def mesh_of(config: MeshConfig, devices: int = 8) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[:devices])


EVERY_WAY = MeshConfig(data=2, fsdp=2, tensor=2)


def shard_shapes(tree: Any) -> dict[str, list[list[int]]]:
    """Path -> the distinct shapes of the shards on the devices."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shapes = {shard.data.shape for shard in leaf.addressable_shards}
        found["/".join(key.key for key in path)] = sorted(map(list, shapes))
    return found


def parts_of(state: dict[str, Any]) -> dict[str, Any]:
    """The shapes of the shards of parameters and moments."""
    parts = {"params": state["params"], "mu": state["optimizer"]["mu"], "nu": state["optimizer"]["nu"]}
    return {name: shard_shapes(tree) for name, tree in parts.items()}


def place(family: str, name: str) -> dict[str, Any]:
    """The shards of a state before the first step."""
    config = config_of(family, name)
    definition, optimizer = adapt(define(config, few.VOCAB), config.lora), make_optimizer(config.optimizer)
    objective = build_objective(config, few.Words(sentinels=8), definition.arch)
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    shardings = state_shardings(mesh_of(config.mesh), definition, shapes, config.mesh)
    return parts_of(jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), shardings))


def train(family: str, name: str, store: TokenStore, steps: int) -> dict[str, Any]:
    """Some real training steps on a mesh, from parameters that do not depend on it."""
    config = config_of(family, name, steps)
    definition = adapt(define(config, few.VOCAB), config.lora)
    built = build_objective(config, few.Words(sentinels=8), definition.arch)
    objective = balanced(built, definition.arch)
    layers.platform = (lambda: "tpu") if name.endswith(" tpu") else hardware.platform
    optimizer, mesh = make_optimizer(config.optimizer), mesh_of(config.mesh, 1 if name == "one" else 8)
    check_batch(mesh, 16, 2, config.data.max_length)
    feed = BatchBuilder(built.examples(store, "train"), 16, 2, local_rows(mesh, 8), config.seed)
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    shardings = state_shardings(mesh, definition, shapes, config.mesh)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state |= {"params": tiny.random_params(definition), "halted": np.int32(-1)}
    with jax.set_mesh(mesh):
        state = jax.device_put(state, shardings)
        step = make_train_step(objective, definition, optimizer, make_schedule(config), config)
        step = jit_train_step(step, shardings).lower(state, to_global(mesh, feed(0), leading=1))
        step = step.compile(compiler_options=tiny.FAST_COMPILE)
        empty = jax.tree.map(np.zeros_like, jax.device_get(state["window"]))
        metrics = []
        for number in range(steps):
            state = step(state, to_global(mesh, feed(number), leading=1))
            metrics.append(window_means(objective, jax.device_get(state["window"])))
            state["window"] = jax.device_put(empty, shardings["window"])
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state["params"])])
    return {"metrics": metrics, "params": flat.tolist(), "shards": parts_of(state)}


def initial_difference() -> float:
    """Largest difference between initial parameters made on one device and on a mesh of eight."""
    config = config_of("bert")
    definition = define(config, few.VOCAB)
    optimizer = make_optimizer(config.optimizer)
    objective = build_objective(config, tiny.WordTokenizer(), definition.arch)
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    made = []
    for mesh in (mesh_of(MeshConfig(), 1), mesh_of(EVERY_WAY)):
        shardings = state_shardings(mesh, definition, shapes)["params"]
        make = jax.jit(lambda: definition.init(7), out_shardings=shardings, compiler_options=tiny.FAST_COMPILE)
        made.append(jax.device_get(make()))
    return max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, made), strict=True))


def dropout_is_the_same() -> list[bool]:
    """Whether a mask made on eight devices is the one made on one, for several ways to divide the array."""

    def drop(x):
        return dropout(x, 0.3, jax.random.key(1))

    x = jnp.ones((16, 6, 8))
    alone, mesh = np.asarray(drop(x)), mesh_of(EVERY_WAY)
    places = [PartitionSpec(("data", "fsdp"), None, "tensor"), PartitionSpec(None, None, AXES), PartitionSpec()]
    divided = (jax.jit(drop, out_shardings=NamedSharding(mesh, place))(x) for place in places)
    return [bool((np.asarray(mask) == alone).all()) for mask in divided]


def attention_differences() -> list[float]:
    """Largest differences of the TPU kernels' output and gradients on eight devices (dropout, biases, shared heads) from those on one."""
    rng = np.random.default_rng(0)
    sizes = [(4, 24, 4, 16), (4, 24, 2, 16), (4, 24, 2, 16), (4, 47), (4, 4, 24)]
    arrays = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (4, 24)), axis=1))

    def results(*arrays: jax.Array) -> Any:
        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array, table: jax.Array, by_key: jax.Array
        ) -> jax.Array:
            mask = AttentionMask(segments, segments, distances_HX=table, key_bias_BHS=by_key)
            return tpu_attend(query, key, value, mask, 0.3, 0.2, jax.random.key(2))

        out, pull = jax.vjp(attend, *arrays)
        return out, pull(jnp.cos(out))

    alone = jax.jit(results)(*arrays)
    with jax.set_mesh(mesh_of(EVERY_WAY)):
        divided = jax.jit(results)(*arrays)
    pairs = zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True)
    return [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs]


def quantized_differences() -> list[float]:
    """Largest differences of a quantized product and its gradients on eight devices from those on one.

    The gradient of the weights is the sum over the four parts of the batch, which have their own scales.
    """
    rng = np.random.default_rng(0)
    x, kernel, gradient = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((512, 32), (32, 24), (512, 24)))

    def results(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(functools.partial(quantized_product, "fp8"), x, kernel)
        return y, *pull(gradient)

    alone_results = jax.jit(results)
    parts = [
        alone_results(rows, kernel, some) for rows, some in zip(jnp.split(x, 4), jnp.split(gradient, 4), strict=True)
    ]
    y, dx, dkernel = (np.stack([part[number] for part in parts]) for number in range(3))
    alone = (y.reshape(512, 24), dx.reshape(512, 32), dkernel.sum(0))
    mesh = mesh_of(EVERY_WAY)
    rows, weights = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("data", "fsdp"),), ("fsdp", "tensor")))
    with jax.set_mesh(mesh):
        divided = jax.jit(results, in_shardings=(rows, weights, rows), out_shardings=(rows, rows, weights))
        found = divided(x, kernel, gradient)
    return [float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in zip(found, alone, strict=True)]


def main(folder: str, steps: str, plan: str, placed: str) -> None:
    assert jax.device_count() == 8
    # On one device the loss is computed in slices, on several at once: both must agree.
    cross_entropy.SLICE_ROWS = 8
    store = tiny.store(pathlib.Path(folder), tiny.documents(seed=0, count=40))
    found = {"initial": initial_difference(), "dropout": dropout_is_the_same()}
    found["attention"] = attention_differences()
    if importlib.util.find_spec("qwix") is not None:
        found["quantized"] = quantized_differences()
    for family, meshes in json.loads(plan).items():
        found[family] = {mesh: train(family, mesh, store, int(steps)) for mesh in meshes}
    found["placed"] = {
        family: {mesh: place(family, mesh) for mesh in meshes} for family, meshes in json.loads(placed).items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

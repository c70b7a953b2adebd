"""The state of a run: one nested dict of arrays, the same in memory, in a checkpoint and across versions.

step        int32, optimizer steps done
seed        uint32, of dropout
params      the model's parameters
optimizer   a counter and moments: AdamW's and LAMB's count, mu, nu; Lion's count, mu; Muon's count, mu, and nu
            of what AdamW updates; Adafactor's count, v_row, v_col, v; SGD's trace; of trainable parameters only (param_groups.py)
ema         averaged parameters, if train.ema_decay is set
window      sums of metrics since the last line of metrics.jsonl (they survive a restart, so lines do not change)
halted      int32, the step whose loss was not finite, or -1; nothing is updated once it is set
"""

from __future__ import annotations

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm_research.config import Config, MeshConfig
from lm_research.errors import MeshError
from lm_research.models.adapters import adapters_of
from lm_research.models.definition import ModelDefinition, Params
from lm_research.objectives.base import Objective
from lm_research.parallel.hardware import memory_bytes
from lm_research.parallel.mesh import AnyMesh
from lm_research.parallel.rules import over_data, replicated, resolve_rules, tree_shardings
from lm_research.training.param_groups import make_groups
from lm_research.trees import flatten, unflatten

State = dict[str, Any]

# Window entries in addition to the objective's sums and totals: optimizer steps, updates skipped, sum of gradient norms.
COUNTERS = ("steps", "skipped", "grad_norm")


@jax.jit
def copy_arrays(tree: Any) -> Any:
    """Copy arrays to new memory, which survives the donation of the originals."""
    return jax.tree.map(jnp.copy, tree)


@functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
def copy_into(old: Any, tree: Any) -> Any:
    """Copy arrays into the memory of `old`, arrays of the same shapes, which is faster than into new memory."""
    return jax.tree.map(jnp.copy, tree)


def optimizer_to_dict(state: Any) -> dict[str, Any]:
    """Convert the state of any optax chain to nested dicts by field: count, mu, nu; repeated fields are numbered, count_2."""
    return unflatten(dict(_named_leaves(state)))


def optimizer_from_dict(template: Any, fields: dict[str, Any]) -> Any:
    """Invert `optimizer_to_dict`; `template` is any state of the same chain."""
    leaves = flatten(fields)
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path, _ in _named_leaves(template)])


def _named_leaves(state: Any) -> list[tuple[str, Any]]:
    """List (field/path, leaf) of each array: its innermost field, and its path of keys from there."""
    names: dict[tuple[Any, ...], str] = {}  # by the field's path in the state
    taken: collections.Counter[str] = collections.Counter()
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        inside = [place for place, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
        end = inside[-1] + 1 if inside else 0
        field = path[:end]
        if field not in names:
            name = field[-1].name if field else "state"
            taken[name] += 1
            names[field] = name if taken[name] == 1 else f"{name}_{taken[name]}"
        found.append(("/".join([names[field], *map(_key, path[end:])]), leaf))
    return found


def _key(key: Any) -> str:
    """Return a key of a jax.tree_util path, of a dict or a sequence."""
    return str(key.key if isinstance(key, jax.tree_util.DictKey | jax.tree_util.FlattenedIndexKey) else key.idx)


def window_zeros(objective: Objective) -> dict[str, jax.Array]:
    """Make an empty window."""
    names = [*COUNTERS, *objective.metrics, *(f"total_{name}" for name in objective.normalizer_names)]
    return {name: jnp.zeros((), jnp.float32) for name in names}


def window_means(objective: Objective, window: dict[str, Any]) -> dict[str, float]:
    """Compute a window's metrics: each sum divided by its total, `loss_nats`, mean `grad_norm`, and `skipped_steps` if any.

    The means of a window in which every step was skipped are NaN.
    """
    window = {name: float(value) for name, value in window.items()}
    taken = window["steps"] - window["skipped"]
    totals = {name: max(1.0, window[f"total_{name}"]) if taken else math.nan for name in objective.normalizer_names}
    means = {name: window[name] / totals[total] for name, total in objective.metrics.items()}
    means = {
        "loss_nats": sum(means[term] for term in objective.loss_terms),
        **means,
        "grad_norm": window["grad_norm"] / taken if taken else math.nan,
    }
    return means | ({"skipped_steps": int(window["skipped"])} if window["skipped"] else {})


def init_state(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    config: Config,
    objective: Objective,
    seed: jax.Array | None = None,
    loaded: Params | None = None,
) -> State:
    """Make the state before the first step. This is pure, so that jit can place every array.

    Args:
      definition: the model's.
      optimizer: whose state is made.
      config: of the run.
      objective: whose metrics the window sums.
      seed: replaces config.seed: as an argument of a jitted function it lets one program serve all seeds.
      loaded: all parameters but adapters; without them they are random too.
    """
    start = config.seed if seed is None else seed
    if loaded is None:
        params = definition.init(start)
    else:
        adapters = adapters_of(definition.init(start)) if adapters_of(definition.shapes) else {}
        # A step overwrites its state, which therefore must not share memory with other arrays.
        params = unflatten(flatten(jax.tree.map(jnp.copy, loaded)) | adapters)
    trainable = make_groups(config, definition.shapes, definition.layers_of).trainable(params)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "seed": jnp.asarray(start, jnp.uint32),
        "params": params,
        "optimizer": optimizer_to_dict(optimizer.init(trainable)),
        "window": window_zeros(objective),
        "halted": jnp.full((), -1, jnp.int32),
    }
    if config.train.ema_decay:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def averaged_params(state: State) -> Any:
    """Return the parameters that a run evaluates and exports: their average, if it keeps one."""
    return state.get("ema", state["params"])


def check_memory(shapes: State, shardings: State) -> None:
    """Raise a MeshError, before anything is allocated, if a device has less memory than its part of the state takes."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    needed = sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
    if needed > (available := memory_bytes()):
        raise MeshError(
            f"Parameters and optimizer of this model take {needed / 2**30:,.1f} GiB on each device, which has {available / 2**30:,.1f} GiB. "
            "Make the model smaller, or divide it over more devices (--config.mesh.preset=fsdp); python -m lm_research.plan computes what a "
            "run needs."
        )


def state_shardings(
    mesh: AnyMesh, definition: ModelDefinition, shapes: State, config: MeshConfig | None = None
) -> State:
    """Make the shardings of the state: moments and averages like their parameters, the rest replicated.

    Args:
      mesh: the run's mesh.
      definition: the model, for its logical axes.
      shapes: `jax.eval_shape` of `init_state`.
      config: its rules, and zero1, whether moments are also divided over the data axis.

    Raises:
      MeshError: a parameter's axis is not divisible by its number of devices, or a rule cannot be used.
    """
    config = config or MeshConfig()
    params = tree_shardings(mesh, definition.shapes, definition.axes, resolve_rules(config.rules))
    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    alike: object = jax.tree.structure(shapes["params"])

    def place(name: str, tree: Any) -> Any:
        return params if alike == jax.tree.structure(tree) else everywhere[name]

    shardings = {name: place(name, tree) for name, tree in shapes.items() if name != "optimizer"}
    moments = jax.tree.map(lambda s, x: over_data(s, x.shape), params, shapes["params"]) if config.zero1 else params

    sharding_of, shape_of = flatten(moments), flatten(shapes["params"])

    def moment(path: tuple[Any, ...], x: Any) -> Any:
        """Shard a moment like the parameter of its path; Adafactor's rows and columns are small, and replicated."""
        name = "/".join(str(key.key) for key in path)
        like_param = name in shape_of and x.shape == shape_of[name].shape
        return sharding_of[name] if like_param else replicated(mesh)

    shardings["optimizer"] = {
        name: jax.tree_util.tree_map_with_path(moment, tree) for name, tree in shapes["optimizer"].items()
    }
    return shardings

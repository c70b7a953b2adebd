"""The state of a run: one nested dict of arrays, the same in memory, in a checkpoint and across versions.

step        int32, optimizer steps done
seed        uint32, of dropout
params      the model's parameters
optimizer   a counter and moments: AdamW's and LAMB's count, mu, nu; Lion's count, mu; Muon's count, mu, and nu
            of what is AdamW's; Adafactor's count, v_row, v_col, v; SGD's trace; of the parameters that learn (groups.py)
ema         averaged parameters, if train.ema_decay is set
window      sums of metrics since the last line of metrics.jsonl (they survive a restart, so lines do not change)
halted      int32, the step whose loss was not finite, or -1; nothing is updated once it is set
"""

from __future__ import annotations

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm_research.config import Config, MeshConfig
from lm_research.errors import MeshError
from lm_research.models.definition import ModelDefinition
from lm_research.objectives.base import Objective
from lm_research.parallel.hardware import memory_bytes
from lm_research.parallel.mesh import AnyMesh
from lm_research.parallel.rules import over_data, replicated, resolve_rules, tree_shardings
from lm_research.training.param_groups import make_groups
from lm_research.trees import flatten, unflatten

State = dict[str, Any]

# Window entries beside the objective's sums and totals: optimizer steps, updates skipped, sum of gradient norms.
COUNTERS = ("steps", "skipped", "grad_norm")


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in memory of their own, which no step overwrites that is given the others."""
    return jax.tree.map(jnp.copy, tree)


def optimizer_to_dict(state: Any) -> dict[str, Any]:
    """The state of any optax chain as plain nested dicts by field: count, mu, nu; a field that several parts have is numbered, count_2."""
    return unflatten(dict(_named_leaves(state)))


def optimizer_from_dict(template: Any, fields: dict[str, Any]) -> Any:
    """The inverse of `optimizer_to_dict`; `template` is any state of the same chain."""
    leaves = flatten(fields)
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path, _ in _named_leaves(template)])


def _named_leaves(state: Any) -> list[tuple[str, Any]]:
    """(field/path, leaf) of each array: the innermost field that it lies in, and its path of keys from there."""
    names: dict[tuple[Any, ...], str] = {}  # by where in the state a field is
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
    """A key of a path of jax.tree_util: of a dict or a sequence."""
    return str(key.key if isinstance(key, jax.tree_util.DictKey | jax.tree_util.FlattenedIndexKey) else key.idx)


def window_zeros(objective: Objective) -> dict[str, jax.Array]:
    """An empty window."""
    names = [*COUNTERS, *objective.metrics, *(f"total_{name}" for name in objective.normalizer_names)]
    return {name: jnp.zeros((), jnp.float32) for name in names}


def window_means(objective: Objective, window: dict[str, Any]) -> dict[str, float]:
    """Metrics of a window: each sum divided by its total, `loss_nats`, mean `grad_norm`, and `skipped_steps` if any.

    A window whose every step was skipped has no means: they are NaN.
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
) -> State:
    """The state before the first step; pure, so that jit can make every array where it belongs.

    `seed` replaces config.seed: as an argument of a jitted function it lets one program serve all seeds.
    """
    start = config.seed if seed is None else seed
    params = definition.init(start)
    learning = make_groups(config, definition.shapes, definition.layers_of).learning(params)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "seed": jnp.asarray(start, jnp.uint32),
        "params": params,
        "optimizer": optimizer_to_dict(optimizer.init(learning)),
        "window": window_zeros(objective),
        "halted": jnp.full((), -1, jnp.int32),
    }
    if config.train.ema_decay:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def check_room(shapes: State, shardings: State) -> None:
    """Raises a MeshError, before anything is allocated, if a device has less memory than its part of the state takes."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    needed = sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves)
    if needed > (room := memory_bytes()):
        raise MeshError(
            f"Parameters and optimizer of this model take {needed / 2**30:,.1f} GiB on each device, which has {room / 2**30:,.1f} GiB. Make "
            "the model smaller, or divide it over more devices (--config.mesh.preset=fsdp); python -m lm_research.plan says what a run needs."
        )


def state_shardings(
    mesh: AnyMesh, definition: ModelDefinition, shapes: State, config: MeshConfig | None = None
) -> State:
    """Where each array of the state lies: moments and averages like their parameters, the rest everywhere.

    Args:
      mesh: the run's mesh.
      definition: the model, for its logical axes.
      shapes: `jax.eval_shape` of `init_state`.
      config: its rules, and zero1: whether moments are divided over the data axis too.

    Raises:
      MeshError: a parameter's axis cannot be divided over the devices it would lie on, or a rule cannot be used.
    """
    config = config or MeshConfig()
    params = tree_shardings(mesh, definition.shapes, definition.axes, resolve_rules(config.rules))
    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    alike: object = jax.tree.structure(shapes["params"])

    def place(name: str, tree: Any) -> Any:
        return params if alike == jax.tree.structure(tree) else everywhere[name]

    shardings = {name: place(name, tree) for name, tree in shapes.items() if name != "optimizer"}
    moments = jax.tree.map(lambda s, x: over_data(s, x.shape), params, shapes["params"]) if config.zero1 else params

    place_of, shaped = flatten(moments), flatten(shapes["params"])

    def moment(path: tuple[Any, ...], x: Any) -> Any:
        """Like the parameter of its path; Adafactor's rows and columns are small, and lie everywhere."""
        name = "/".join(str(key.key) for key in path)
        known = name in shaped and x.shape == shaped[name].shape
        return place_of[name] if known else replicated(mesh)

    shardings["optimizer"] = {
        name: jax.tree_util.tree_map_with_path(moment, tree) for name, tree in shapes["optimizer"].items()
    }
    return shardings

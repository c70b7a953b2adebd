"""Collectives of a training step: the bytes that chips send along each mesh axis.

With a ring over n devices, each device sends (n - 1) / n of an array for an all-gather or reduce-scatter, and twice that for an
all-reduce, which is a reduce-scatter followed by an all-gather (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh

from lm_research.config import Config
from lm_research.models.layers import sums_parts
from lm_research.parallel.rules import resolve_rules, tree_shardings
from lm_research.planning.workload import Workload
from lm_research.training.table_copies import TABLE_AXES
from lm_research.trees import flatten

PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "collective-permute": 1}
FLOAT32 = 4
TABLES = "token tables"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Bytes that one chip sends per step for one purpose: over the links within a slice, and over the network.

    `count` is the number of times per step for the whole model; the compiled program communicates per array or per layer.
    """

    kind: str
    axis: str
    purpose: str
    count: int
    array_bytes: float
    link_bytes: float
    network_bytes: float


def collectives(
    config: Config,
    work: Workload,
    mesh: AbstractMesh,
    rows: int,
    slices: int,
    crossing: str | None,
    platform: str = "tpu",
) -> tuple[Collective, ...]:
    """List the collectives of one step.

    fsdp: each micro-batch gathers the weights, in the compute type or quantized, twice, in the forward and the backward pass (recomputation
      uses those of the backward pass), or once (`keeps_gathered`), and reduce-scatters their gradients (ZeRO-3, Rajbhandari et al. 2019,
      section 7: 3 P, where data parallelism has 2 P). TPUs sum whole gradients where layers.sums_parts is False, and cut the result.
    data: each micro-batch all-reduces the gradients of a chip's trainable parameters.
    token tables: trainable ones are gathered once per step, and their gradients are summed once, in the compute type
      (training/table_copies.py). Of several axes the first sums over its groups, and each of the others the parts of those sums. Devices of a context axis share a copy,
      which each micro-batch sums in float32.
    context: gradients as on data, because its chips have the same parameters. Each attention layer also passes keys and values around
      the ring in the forward pass, and their gradients in the backward pass (Liu et al. 2023, section 3); recomputation adds one pass.
    expert: gradients of parameters that it does not divide, as on data. Each layer with experts gathers the rows of its group, and
      scatters the sums of its output, [b, L, D] each; the backward pass does the reverse.
    tensor: each sub-layer sums its output over the axis in the forward pass and the gradient of its input in the backward pass (Shoeybi
      et al. 2019, section 3), [b, L, D] each; recomputation adds one forward sum. The token table and the vocabulary projection do the
      same.

    Args:
      config: config of the run.
      work: its workload.
      mesh: its mesh.
      rows: sequences per chip and micro-batch, b.
      slices: number of slices that the axis `crossing` spans.
      crossing: mesh axis that spans slices, or None.
      platform: "tpu" or "gpu".
    """
    micro, item = config.train.accumulation_steps, work.definition.arch.compute_dtype.itemsize
    divided, whole = _parameters_per_chip(config, work, mesh)
    learn_divided, learn_whole = _parameters_per_chip(config, work, mesh, learning=True)
    tables = table_bytes(work, mesh.shape["tensor"])
    parts = {axis: slices if axis == crossing else 1 for axis in mesh.shape}
    found = []

    def add(kind: str, axis: str, purpose: str, count: int, array_bytes: float) -> None:
        if mesh.shape[axis] > 1 and array_bytes:
            inside = mesh.shape[axis] // parts[axis]
            sent = PASSES[kind] * count * array_bytes
            network = sent * (parts[axis] - 1) / parts[axis] / inside
            found.append(Collective(kind, axis, purpose, count, array_bytes, sent * (inside - 1) / inside, network))

    fsdp = mesh.shape["fsdp"]
    gathered = item if config.train.quantization == "none" else 1  # quantized before they are sent
    times = micro if keeps_gathered(config, work, platform) else 2 * micro
    add("all-gather", "fsdp", "weights", times, divided * fsdp * gathered)
    is_whole = platform == "tpu" and not sums_parts(work.definition.arch.hidden_size, fsdp)
    add("all-reduce" if is_whole else "reduce-scatter", "fsdp", "gradients", micro, learn_divided * fsdp * item)
    add("all-reduce", "fsdp", "gradients of whole parameters", micro, learn_whole * item)
    add("all-reduce", "data", "gradients", micro, (learn_divided + learn_whole) * item)
    add("all-reduce", "context", "gradients", micro, (learn_divided + learn_whole) * item)
    _, outside = _parameters_per_chip(config, work, mesh, learning=True, axis="expert")
    add("all-reduce", "expert", "gradients", micro, outside * item)
    add("all-reduce", "context", TABLES, micro, tables)
    tables *= item / FLOAT32
    add("all-gather", "fsdp", TABLES, 1, tables)
    for axis in ("fsdp", "data", "expert"):
        add("all-reduce", axis, TABLES, 1, tables)
        tables /= mesh.shape[axis]
    for kind in ("all-gather", "reduce-scatter"):
        add(kind, "expert", "rows of experts", *_expert_rows(work, mesh, rows, micro, item))
    add("collective-permute", "context", "keys and values", *_rings(work, mesh, rows, micro, item))
    add("all-reduce", "tensor", "activations", *_activation_sums(work, rows, micro, item))
    return tuple(found)


def keeps_gathered(config: Config, work: Workload, platform: str) -> bool:
    """Whether the backward pass of a micro-batch uses the weights that the forward pass gathered (layers.gathered_product)."""
    arch = work.definition.arch
    return platform == "tpu" and config.train.quantization == "none" and not arch.scan_layers and arch.remat == "none"


def token_tables(work: Workload) -> set[str]:
    """Return the paths of the trainable token tables, which a step uses and differentiates in float32 (training/table_copies.py)."""
    is_table = jax.tree.map(lambda _, axes: axes == TABLE_AXES, work.definition.shapes, work.definition.axes)
    return {path for path, found in flatten(work.groups.trainable(is_table)).items() if found}


def table_bytes(work: Workload, tensor: int) -> float:
    """Return the bytes that a device has of them, of which a tensor axis has parts."""
    shapes = flatten(work.definition.shapes)
    return FLOAT32 * sum(math.prod(shapes[path].shape) for path in token_tables(work)) / tensor


def _parameters_per_chip(
    config: Config, work: Workload, mesh: AbstractMesh, learning: bool = False, axis: str = "fsdp"
) -> tuple[int, int]:
    """Count the elements per chip of (trainable) parameters that a mesh axis divides, and of those that it does not, without token tables."""
    rules = resolve_rules(config.mesh.rules)
    placed = tree_shardings(mesh, work.definition.shapes, work.definition.axes, rules)
    shapes = work.definition.shapes
    if learning:
        placed, shapes = work.groups.trainable(placed), work.groups.trainable(shapes)
    sums, tables, sharding = [0, 0], token_tables(work), flatten(placed)
    for path, leaf in flatten(shapes).items():
        if path not in tables:
            sums[axis not in _names(sharding[path].spec)] += math.prod(sharding[path].shard_shape(leaf.shape))
    return sums[0], sums[1]


def _expert_rows(work: Workload, mesh: AbstractMesh, rows: int, micro: int, item: int) -> tuple[int, float]:
    """Return the number of times in a step that an `expert` group collects its rows, and the bytes of one group's array.

    Each layer with experts gathers its input and scatters the sum of its output, and does the reverse in the backward pass.
    """
    arch = work.definition.arch
    count = sum(bool(spec.num_experts) for spec in arch.layer_specs)
    length = work.length / mesh.shape["context"]
    return 2 * micro * count, rows * mesh.shape["expert"] * length * arch.hidden_size * item


def _rings(work: Workload, mesh: AbstractMesh, rows: int, micro: int, item: int) -> tuple[int, float]:
    """Return the number of ring passes of keys and values in a step, and the mean bytes per pass of all chips together.

    Keys and values count once per query head, because shared ones are copied first. A stack whose positions cannot be divided has no
    ring.
    """
    arch, parts = work.definition.arch, mesh.shape["context"]
    rounds = 3 if arch.remat == "full" else 2
    stacks = [(arch, work.length)] + ([(arch.encoder, work.source_length)] if arch.encoder else [])
    rings = [(stack, length) for stack, length in stacks if length % parts == 0]
    if len(rings) == 2:
        rings.append((arch, work.source_length))  # the decoder's attention to the encoder
    count = sum(stack.num_layers for stack, _ in rings)

    def widths(stack: Any) -> int:
        return sum(spec.num_heads * spec.head_size for spec in stack.layer_specs)

    total = sum(2 * length * widths(stack) for stack, length in rings)
    return micro * rounds * count, rows * item * total / max(1, count) / mesh.shape["tensor"]


def _names(spec: Any) -> set[str]:
    names: set[str] = set()
    for entry in spec:
        names |= {entry} if isinstance(entry, str) else set(entry or ())
    return names


def _activation_sums(work: Workload, rows: int, micro: int, item: int) -> tuple[int, float]:
    """Return the number of sums over the tensor axis in a step, and the mean bytes of their arrays."""
    arch = work.definition.arch
    rounds = 3 if arch.remat == "full" else 2
    stacks = (
        [(arch.encoder, 2, work.source_length), (arch, 3, work.length)] if arch.encoder else [(arch, 2, work.length)]
    )
    count = sum(rounds * parts * stack.num_layers + 2 for stack, parts, _ in stacks)
    total = sum((rounds * parts * stack.num_layers + 2) * length * stack.hidden_size for stack, parts, length in stacks)
    return micro * count, rows * item * total / count

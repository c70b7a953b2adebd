"""Plans by arithmetic: memory by kind, communication by mesh axis, a lower bound of the step time and a prediction.

Memory and communication are per device, of which a chip has one or two. Symbols: P parameters, b sequences per device and micro-batch, A micro-batches, n devices of an
axis, t of the tensor axis, c of the context axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from lm_research.config import Config, MeshConfig, replace
from lm_research.models.adapters import is_adapter
from lm_research.models.attention.module import use_fused_kernel
from lm_research.models.quantization import check_quantization
from lm_research.objectives.cross_entropy import slice_rows
from lm_research.parallel.batches import check_batch, resolve_batch
from lm_research.parallel.mesh import AXES, mesh_shape, network_axis
from lm_research.parallel.rules import batch_parts, batch_shards, resolve_rules, tree_shardings
from lm_research.planning.predict import FLOAT32_PASSES, step_parts
from lm_research.planning.topology import Topology, links
from lm_research.planning.traffic import FLOAT32, Collective, collectives, keeps_gathered
from lm_research.planning.workload import Workload, activation_bytes, flops_per_row, make_workload
from lm_research.training.state import state_shardings
from lm_research.trees import flatten


@dataclasses.dataclass(frozen=True)
class ResourcePlan:
    """Resources of a run. Bytes are per device, seconds per step; `memory` maps a kind to bytes.

    `parts` has the predicted time of a step by what it is spent on (predict.py); `step_seconds` is their sum, and `mfu` follows from it.
    `seconds` has the terms of the roofline (compute, hbm, ici, dcn), each without the others; `best_seconds` combines them with
    `lower_bound`, and `best_mfu` follows from that.
    """

    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    remat: str
    micro_batches: int
    rows_per_device: int
    parameters: int
    trained: int
    flops_per_token: float
    flops_per_step: float
    tokens_per_step: int
    memory: dict[str, float]
    memory_bytes: float
    device_bytes: float
    fits: bool
    collectives: tuple[Collective, ...]
    parts: dict[str, float]
    step_seconds: float
    mfu: float
    seconds: dict[str, float]
    best_seconds: float
    best_mfu: float
    tokens_per_second: float
    num_steps: int | None
    chip_hours: float | None
    cost: float | None


def plan_run(
    config: Config,
    topology: Topology,
    price: float | None = None,
    work: Workload | None = None,
    only_fitting: bool = False,
) -> ResourcePlan:
    """Plan a run on a topology.

    Args:
      config: config of the run.
      topology: chips and their connections.
      price: price of one chip-hour; None leaves out the cost.
      work: `make_workload(config)`, if already computed.
      only_fitting: whether a plan that does not fit needs no prediction; it gets the lower bound.

    Raises:
      MeshError: the mesh does not fit the topology, or cannot divide the batch or a parameter.
      ConfigError: see `make_workload`.
    """
    config = resolve_batch(config, topology.num_devices)
    mesh = abstract_mesh(config, topology)
    work = work or make_workload(config)
    check_quantization(config, work.definition.arch, mesh.shape, topology.chip)
    config = _with_attention(config, work, topology)
    shape, train = dict(mesh.shape), config.train
    crossing = network_axis(shape, topology.slices)
    rows = train.batch_size // train.accumulation_steps // batch_shards(shape)
    memory = memory_by_kind(config, work, mesh, rows, topology.platform)
    moved = collectives(config, work, mesh, rows, topology.slices, crossing, topology.platform)
    flops = flops_per_row(work).total * train.batch_size
    seconds = roofline(config, work, topology, mesh, rows, memory, moved)
    best = lower_bound(seconds)
    fits = sum(memory.values()) <= topology.device.hbm_bytes
    parts = {} if only_fitting and not fits else step_parts(config, work, topology, shape, rows, memory, moved)
    step = max(best, sum(parts.values()))
    peak = topology.num_chips * topology.chip.flops
    total, tokens = sum(memory.values()), train.batch_size * work.tokens_per_row
    hours = None if train.num_epochs or train.budget else topology.num_chips * step * train.num_steps / 3600
    return ResourcePlan(
        topology=str(topology),
        chips=topology.num_chips,
        devices=topology.num_devices,
        mesh={axis: size for axis, size in shape.items() if axis != "expert" or size > 1},
        remat=config.model.remat,
        micro_batches=train.accumulation_steps,
        rows_per_device=rows,
        parameters=work.definition.num_params,
        trained=work.groups.count(work.definition.shapes),
        flops_per_token=flops / tokens,
        flops_per_step=flops,
        tokens_per_step=tokens,
        memory=memory,
        memory_bytes=total,
        device_bytes=topology.device.hbm_bytes,
        fits=fits,
        collectives=moved,
        parts=parts,
        step_seconds=step,
        mfu=flops / step / peak,
        seconds=seconds,
        best_seconds=best,
        best_mfu=flops / best / peak,
        tokens_per_second=tokens / step,
        num_steps=None if train.num_epochs or train.budget else train.num_steps,
        chip_hours=hours,
        cost=None if hours is None or price is None else hours * price,
    )


def _with_attention(config: Config, work: Workload, topology: Topology) -> Config:
    """Set the attention backend that `auto` would choose on the topology, so that its memory can be traced on any machine."""
    if config.model.attention_backend != "auto":
        return config
    lengths = (config.data.max_length, config.data.max_length)
    arch, others = work.definition.arch, (lengths, False, topology.platform)
    fast = all(use_fused_kernel(arch, spec, *others) for spec in arch.kinds)
    return replace(config, model={"attention_backend": "flash" if fast else "xla"})


def abstract_mesh(config: Config, topology: Topology) -> AbstractMesh:
    """Make the run's abstract mesh over the topology's devices; raise a MeshError like `make_mesh` and `check_batch`."""
    shape = mesh_shape(config.mesh, topology.num_devices)
    mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    check_batch(mesh, config.train.batch_size, config.train.accumulation_steps, config.data.max_length)
    return mesh


def memory_by_kind(config: Config, work: Workload, mesh: AbstractMesh, rows: int, platform: str) -> dict[str, float]:
    """Estimate the memory per device at the end of the forward pass, where a step needs most, in bytes by kind.

    parameters, optimizer, average: arrays of the state in float32, divided by their shardings. AdamW has two moments, so parameters and
      optimizer take 12 bytes per parameter (Rajbhandari et al. 2019, section 3.1, without the 16-bit copies, which are temporary here),
      over fsdp x tensor devices.
    gradients: 4 bytes per trainable parameter, divided alike; twice with micro-batches: the sum and the next term.
    adapted: sums of kernels and adapters, and their gradients (models/adapters.py); missing without adapters.
    activations: b times `activation_bytes`.
    logits: predicted positions / c x vocabulary / t, as float32 logits, their exponentials and a copy in the compute type, plus the full
      token table (compute type) and its gradient (float32), twice while it is transposed. See objectives/cross_entropy.py, which takes
      a slice of positions at a time, but all at once where devices share a table: a mesh that divides positions, or only the vocabulary.
    working: live memory of one block: with remat, the arrays that its backward pass recomputes; with fsdp, its gathered kernels in the
      compute type, and those of the next block, which are being fetched, or of all blocks if they are kept (traffic.keeps_gathered).
    """
    state = _state_bytes(config, work, mesh)
    learns = set(flatten(work.groups.trainable(work.definition.shapes)))
    learning = _bytes(config, work, mesh, learns)
    arch, shape = work.definition.arch, dict(mesh.shape)
    item, tensor = arch.compute_dtype.itemsize, shape["tensor"]
    predicted = rows * work.predicted_per_row / shape["context"]
    has_slices = mesh.size == 1 or batch_parts(mesh) > 1
    at_once = predicted / max(1, round(predicted / slice_rows(platform))) if has_slices else predicted
    vocabulary = arch.vocab_size / tensor
    logits = at_once * vocabulary * (2 * FLOAT32 + item)
    logits += vocabulary * arch.prediction_width * (item + 2 * FLOAT32)
    layers = arch.num_layers + (arch.encoder.num_layers if arch.encoder else 0)
    working = 0.0
    if arch.remat != "none":
        working += rows * kept_per_row(config, "none", shape, platform) / layers
    if shape["fsdp"] > 1:
        gathered = layers if keeps_gathered(config, work, platform) else 2
        working += gathered * item * work.definition.num_params / tensor / layers
    adapted = adapted_kernels(work)
    more = {"adapted": 2 * _bytes(config, work, mesh, adapted)} if adapted else {}
    return state | {
        "gradients": learning * (2 if config.train.accumulation_steps > 1 else 1),
        **more,
        "activations": rows * kept_per_row(config, arch.remat, shape, platform),
        "logits": logits,
        "working": working,
    }


def adapted_kernels(work: Workload) -> set[str]:
    """Return the paths of kernels with adapters."""
    return {f"{path.rpartition('/')[0]}/kernel" for path in flatten(work.definition.shapes) if is_adapter(path)}


def _bytes(config: Config, work: Workload, mesh: AbstractMesh, paths: set[str]) -> float:
    """Return the bytes per device of float32 arrays with the shapes of these parameters."""
    shapes, rules = flatten(work.definition.shapes), resolve_rules(config.mesh.rules)
    placed = flatten(tree_shardings(mesh, work.definition.shapes, work.definition.axes, rules))
    return float(FLOAT32 * sum(math.prod(placed[path].shard_shape(shapes[path].shape)) for path in paths))


def kept_per_row(config: Config, remat: str, shape: Mapping[str, int], platform: str) -> float:
    """Return `activation_bytes` for a remat policy; traced once for all plans of a model."""
    plain = dict(batch_size=2, accumulation_steps=1)
    alike = replace(config, model={"remat": remat}, train=plain, mesh=dataclasses.asdict(MeshConfig()))
    return activation_bytes(alike, shape["tensor"], shape["context"], platform)


def _state_bytes(config: Config, work: Workload, mesh: AbstractMesh) -> dict[str, float]:
    shapes = work.state_shapes
    placed = state_shardings(mesh, work.definition, shapes, config.mesh)

    def bytes_of(name: str) -> float:
        def one(leaf: Any, sharding: Any) -> float:
            return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

        return float(sum(jax.tree.leaves(jax.tree.map(one, shapes[name], placed[name]))))

    names = {"parameters": "params", "optimizer": "optimizer"} | ({"average": "ema"} if "ema" in shapes else {})
    return {kind: bytes_of(name) for kind, name in names.items()}


def roofline(
    config: Config,
    work: Workload,
    topology: Topology,
    mesh: AbstractMesh,
    rows: int,
    memory: dict[str, float],
    moved: tuple[Collective, ...],
) -> dict[str, float]:
    """Compute the time of a step if a single resource limited it (Williams et al. 2009), in seconds by resource.

    compute: operations of the model and of recomputation over the chip's peak; in float32 times FLOAT32_PASSES. Recomputing whole blocks
      adds a third of the operations of layers and attention. Recomputing all but matrix products adds a third of attention's, and so do
      rings and a GPU's kernels under any policy. A TPU's kernels add a sixth, the scores, in addition.
      Quantized products of layers run at the rate of their type.
    hbm: the optimizer reads parameter, moments and gradient and writes all but the gradient (28 bytes per local trainable parameter).
      Each micro-batch reads the weights in the forward pass, the backward pass and recomputation, writes and reads the arrays of each
      block (which pass through memory once with or without remat), and accesses the logits three times.
    ici, ici_tensor, dcn: bytes of the collectives over the bandwidth of their axis; those of the tensor axis separately.
    """
    train, chip, arch = config.train, topology.device, work.definition.arch
    tensor = mesh.shape["tensor"]
    flops = flops_per_row(work)
    fused = config.model.attention_backend == "flash"
    scores = 0.0 if arch.remat == "none" or arch.remat in ("names", "offload") and fused else flops.attention / 3
    again = (flops.layers + flops.attention) / 3 if arch.remat == "full" else scores
    if fused and chip.torus and mesh.shape["context"] == 1:
        again += flops.attention / 6
    elif fused or mesh.shape["context"] > 1:
        again = max(again, flops.attention / 3)
    slower = FLOAT32_PASSES[bool(chip.torus)] if arch.dtype == "float32" else 1.0
    fast = 0.0 if train.quantization == "none" else flops.layers * (4 / 3 if arch.remat == "full" else 1)
    busy = (flops.total + again - fast) * slower / chip.flops + fast / chip.product_flops(1)
    compute = train.batch_size * busy / topology.num_devices

    weights = work.definition.num_params / tensor * arch.compute_dtype.itemsize
    passes = 3 if arch.remat == "full" else 2
    arrays = 2 * rows * kept_per_row(config, "none", mesh.shape, topology.platform)
    logits = 3 * FLOAT32 * rows * work.predicted_per_row * arch.vocab_size / tensor / mesh.shape["context"]
    micro = 2 if train.accumulation_steps > 1 else 1
    hbm = memory["gradients"] / micro / FLOAT32 * 28 + train.accumulation_steps * (passes * weights + arrays + logits)

    speed = links(topology, mesh.shape)
    ici = {c.axis: 0.0 for c in moved} | {"tensor": 0.0}
    for collective in moved:
        ici[collective.axis] += collective.link_bytes / speed[collective.axis]
    return {
        "compute": compute,
        "hbm": hbm / chip.hbm_bandwidth,
        "ici": sum(value for axis, value in ici.items() if axis != "tensor"),
        "ici_tensor": ici["tensor"],
        "dcn": sum(c.network_bytes for c in moved) / chip.network_bandwidth,
    }


def lower_bound(seconds: dict[str, float]) -> float:
    """Combine the terms of the roofline: the slowest resource that can overlap with others, plus those that cannot.

    Gathering weights and reducing gradients overlap with the computation of other layers; the sums over the tensor axis separate
    consecutive layers.
    """
    return max(seconds["compute"], seconds["hbm"], seconds["ici"], seconds["dcn"]) + seconds["ici_tensor"]

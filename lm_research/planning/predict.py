"""Prediction of a step's time from the kernels and collectives of a run, with the reason for each part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lm_research.config import Config, MeshConfig, replace
from lm_research.planning.efficiency import efficiency, kernel_seconds
from lm_research.planning.topology import Topology, hops, links
from lm_research.planning.traffic import FLOAT32, TABLES, Collective, keeps_gathered, table_bytes
from lm_research.planning.workload import Workload, gradient_kernels

# Cost of a float32 product in bfloat16 products, by whether the chip is a TPU. A TPU takes six (jax's precision "float32", which
# training uses); by NVIDIA's data sheets, float32 without tensor cores has 1/15 to 1/16 of the bfloat16 rate.
FLOAT32_PASSES = {True: 6.0, False: 16.0}
# Mesh axes whose collectives overlap with computation: weights are fetched a layer ahead, and gradients are summed while the backward
# pass computes those of earlier layers. What a tensor, context or expert axis moves is needed at once. Token tables are gathered before a step's
# first operation and summed after the last of its backward pass, so that nothing hides them.
OVERLAPPED = ("data", "fsdp")

# Mean delay of a slice, as a fraction of the step: fitted to MaxText's 16B model on v5e, whose MFU falls from 61.1% on one slice of 256 chips
# to 54.7% on 32 (README of AI-Hypercomputer/maxtext).
STRAGGLING = 0.036


def step_parts(
    config: Config,
    work: Workload,
    topology: Topology,
    mesh: Mapping[str, int],
    rows: int,
    memory: Mapping[str, float],
    moved: tuple[Collective, ...],
) -> dict[str, float]:
    """Predict what a step spends its time on, in seconds by part; the parts follow each other, so their sum is the time of the step.

    products: kernels with matrix products, each as slow as its matrix unit, vector unit or memory (efficiency.kernel_seconds).
    attention: Pallas kernels.
    elementwise: kernels without products: norms, dropout, residuals, softmax and logits, limited by memory.
    weights: see `_weight_bytes`.
    optimizer: parameter, moments and gradient are read and all but the gradient written, 28 bytes per local trainable parameter for two
      moments, after 4 bytes for the norm of the gradient.
    AXIS: transfers of a mesh axis that computation does not hide, see `exposed`.
    network: sums over slices, which follow the backward pass.
    stragglers: the wait for the slowest slice: of n exponentially distributed delays the largest exceeds the mean by 1/2 + ... + 1/n of it.
    """
    chip, reached, train = topology.device, efficiency(topology.chip_name), config.train
    slower = FLOAT32_PASSES[bool(chip.torus)] if work.definition.arch.dtype == "float32" else 1.0
    parts = dict.fromkeys(("products", "attention", "elementwise"), 0.0)
    for kernel in gradient_kernels(traced(config), rows, topology.platform, mesh["tensor"], mesh["context"]):
        part = "attention" if kernel.is_custom else "products" if kernel.products else "elementwise"
        seconds = kernel_seconds(kernel, chip, reached, topology.chip.devices, slower)
        parts[part] += train.accumulation_steps * kernel.times * seconds
    bandwidth = chip.hbm_bandwidth * reached.memory
    gradient = memory["gradients"] / (2 if train.accumulation_steps > 1 else 1)
    parts["weights"] = _weight_bytes(config, work, mesh, memory, gradient, topology.platform) / bandwidth
    state = memory["parameters"] + memory["optimizer"]
    parts["optimizer"] = (2 * state * gradient / max(1.0, memory["parameters"]) + 2 * gradient) / bandwidth
    parts |= exposed(topology, mesh, moved, sum(parts.values()), layers_of(work))
    if topology.slices > 1 and topology.chip.torus:
        parts["stragglers"] = STRAGGLING * sum(1 / n for n in range(2, topology.slices + 1)) * sum(parts.values())
    return parts


def traced(config: Config) -> Config:
    """The config of which the kernels of a micro-batch depend, the same for all plans of a model."""
    return replace(config, train=dict(batch_size=2, accumulation_steps=1), mesh=dataclasses.asdict(MeshConfig()))


def _weight_bytes(
    config: Config,
    work: Workload,
    mesh: Mapping[str, int],
    memory: Mapping[str, float],
    gradient: float,
    platform: str,
) -> float:
    """Return the bytes of a step's copies of weights and gradients.

    The forward and the backward pass of a micro-batch each cast the local parameters to the compute type (read 4 bytes, write 2), and with
    fsdp write the gathered ones, or the forward pass alone (traffic.keeps_gathered). Gradients in the compute type are read and written by their sum over devices; with micro-batches they
    are added to a sum in float32. Token tables are whole on each device: with fsdp they are written once per step, and their gradients
    take part in the sum over micro-batches only.
    """
    item, tensor, micro = work.definition.arch.compute_dtype.itemsize, mesh["tensor"], config.train.accumulation_steps
    tables = table_bytes(work, tensor)
    local = (memory["parameters"] - tables / mesh["fsdp"]) / FLOAT32
    whole = work.definition.num_params / tensor - tables / FLOAT32
    casts = 2 * local * (FLOAT32 + item) if item < FLOAT32 else 0.0
    gathered = (1 if keeps_gathered(config, work, platform) else 2) * whole * item if mesh["fsdp"] > 1 else 0.0
    summed = whole * item + local * item if any(mesh[axis] > 1 for axis in OVERLAPPED) else 0.0
    added = 3 * (gradient + tables) if micro > 1 else 0.0
    copied = tables if mesh["fsdp"] > 1 else 0.0
    return copied + micro * (casts + gathered + summed * gradient / max(1.0, memory["parameters"]) + added)


def layers_of(work: Workload) -> int:
    """Number of layers of all stacks."""
    arch = work.definition.arch
    return arch.num_layers + (arch.encoder.num_layers if arch.encoder else 0)


def exposed(
    topology: Topology, mesh: Mapping[str, int], moved: tuple[Collective, ...], computing: float, layers: int
) -> dict[str, float]:
    """Return the seconds of communication that computation does not hide, by mesh axis, and those of the network between slices.

    A collective takes its bytes over the bandwidth of its axis' links, plus the latency of its transfers, of which there is one per layer:
    each crosses the links to the farthest device. What overlaps is hidden up to the time of the computation, but for the transfer of one
    layer, which nothing precedes.

    Args:
      topology: links.
      mesh: sizes of the mesh axes.
      moved: collectives of a step.
      computing: seconds that the chip computes.
      layers: number of layers.
    """
    speed, far = links(topology, mesh), hops(topology, mesh)
    reached = efficiency(topology.chip_name)
    waited, hidden = ({c.axis: 0.0 for c in moved} for _ in range(2))
    network = 0.0
    for c in moved:
        is_layered = c.axis in OVERLAPPED and c.purpose != TABLES
        transfers = c.count * (layers if is_layered else 1)
        seconds = c.link_bytes / speed[c.axis] + transfers * far[c.axis] * reached.hop
        (hidden if is_layered and c.kind in reached.asynchronous else waited)[c.axis] += seconds
        network += c.network_bytes / topology.device.network_bandwidth
    total = sum(hidden.values())
    left = max(1 / layers, 1 - computing / total) if total else 0.0
    parts = {axis: waited[axis] + left * hidden[axis] for axis in waited}
    return parts | ({"network": network} if topology.slices > 1 else {})

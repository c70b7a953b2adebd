"""Weak scaling: the same sequences per device on 1 to thousands of chips, and the reason for what is lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

from lm_research.config import Config, replace
from lm_research.errors import MeshError
from lm_research.planning.estimate import ResourcePlan, plan_run
from lm_research.planning.topology import Topology, spans

# Shapes of slices with 1, 4, 8, 16, ... chips (docs.cloud.google.com/tpu/docs/{v5e,v5p}, "Configurations"), by dimensions of the torus.
# More chips are slices of the largest shape; a machine has 8 GPUs.
SHAPES = {
    0: ((1,), (2,), (4,), (8,)),
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: (
        (1, 1, 1),
        (2, 2, 1),
        (2, 2, 2),
        (2, 2, 4),
        (2, 4, 4),
        (4, 4, 4),
        (4, 4, 8),
        (4, 8, 8),
        (8, 8, 8),
        (8, 8, 16),
        (8, 16, 16),
    ),
}


class Step(NamedTuple):
    """A number of chips: the plan, or the error that prevents one, and why it is slower than a device that communicates with none."""

    topology: Topology
    plan: ResourcePlan | None
    reason: str


def scaling(config: Config, topology: Topology, max_chips: int = 2048) -> Iterator[Step]:
    """Plan the run on 1 to `max_chips` chips of the topology's kind, with the sequences per device that it has on the topology.

    Within a slice the preset's first axis takes the devices that the config's other axes leave, and the data axis has the slices.
    """
    train = {"per_device_batch_size": plan_run(config, topology).rows_per_device}
    divides = config.mesh.preset.startswith("fsdp") or (config.mesh.fsdp or 1) > 1
    preset = "fsdp" if divides and not config.mesh.preset.startswith("fsdp") else config.mesh.preset
    for one in _topologies(topology, max_chips):
        mesh = {"data": one.slices, "fsdp": 0} if divides else {"data": 0, "fsdp": 1}
        try:
            plan = plan_run(replace(config, mesh=mesh | {"preset": preset}, train=train), one)
        except MeshError as error:
            yield Step(one, None, str(error).partition(". ")[0])
        else:
            yield Step(one, plan, reason(plan, one))


def _topologies(topology: Topology, max_chips: int) -> Iterator[Topology]:
    shapes = [shape for shape in SHAPES[topology.chip.torus] if math.prod(shape) <= max_chips]
    largest = shapes[-1]
    slices = [2**n for n in range(1, 20) if 2**n * math.prod(largest) <= max_chips]
    for shape, count in [*((shape, 1) for shape in shapes), *((largest, count) for count in slices)]:
        name = f"{topology.chip_name}:{'x'.join(map(str, shape))}"
        yield dataclasses.replace(topology, name=name, shape=shape, slices=count)


def reason(plan: ResourcePlan, topology: Topology) -> str:
    """Describe what a step spends on more than the model's own operations, the largest part first, as fractions of the step.

    Parts below a tenth of a percent are left out.
    """
    found = []
    for name, seconds in sorted(plan.parts.items(), key=lambda item: -item[1]):
        fraction = seconds / plan.step_seconds
        if fraction >= 0.001 and (what := _what(plan, topology, name)):
            found.append(f"{fraction:.1%} {what}")
    return "; ".join(found)


def _what(plan: ResourcePlan, topology: Topology, part: str) -> str:
    """Describe a part of a step, if it depends on the number of chips."""
    if part == "network":
        return f"network: sums over {topology.slices} slices"
    if part == "stragglers":
        return f"waiting for the slowest of {topology.slices} slices"
    if part in ("optimizer", "weights"):
        return part
    if part not in plan.mesh:
        return ""
    largest = max((one for one in plan.collectives if one.axis == part), key=lambda one: one.link_bytes)
    found = spans(topology, plan.mesh)[part]
    way = " and ".join(f"a {'ring' if span.is_ring else 'line'} of {span.length}" for span in found)
    return f"{part}: {largest.kind} of {largest.purpose} on {way}"

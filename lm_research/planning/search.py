"""Search for the mesh, micro-batch size and remat policy that fit, and rank them by estimated speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lm_research.config import Config, replace
from lm_research.errors import MeshError
from lm_research.parallel.batches import resolve_batch
from lm_research.parallel.hardware import GIB
from lm_research.planning.estimate import ResourcePlan, plan_run
from lm_research.planning.topology import Topology
from lm_research.planning.workload import Workload, make_workload

TENSOR = (1, 2, 4, 8, 16)
CONTEXT = (1, 2, 4, 8, 16)
LONG = 4096  # sequence length from which context parallelism is tried even if the batch is large enough for all chips
REMAT = ("none", "names", "dots", "full")


def search(config: Config, topology: Topology, price: float | None = None) -> list[ResourcePlan]:
    """Return all plans that fit, fastest first, and by memory among equally fast ones.

    The search tries tensor axes of 1 to 16; context axes of 1 to 16 if sequences are long or fewer than chips; for the remaining chips an
    fsdp axis of 1, 2, 4, ... and a data axis of the rest; all remat policies but offload; and increasing numbers of micro-batches until the plan
    fits (more would only be slower).

    Raises:
      MeshError: nothing fits; the message has the plan with the least memory.
    """
    config = resolve_batch(config, topology.num_devices)  # all plans keep one global batch
    fitting: list[ResourcePlan] = []
    nearest: ResourcePlan | None = None
    works = {remat: make_workload(replace(config, model={"remat": remat})) for remat in REMAT}
    for candidate in _candidates(config, topology.num_devices):
        for plan in _micro_batches(candidate, topology, price, works[candidate.model.remat]):
            if nearest is None or plan.memory_bytes < nearest.memory_bytes:
                nearest = plan
            if plan.fits:
                fitting.append(plan)
                break
    if not fitting:
        raise MeshError(_nothing(config, topology, nearest))
    return sorted(fitting, key=lambda plan: (plan.step_seconds, plan.memory_bytes))


def _candidates(config: Config, chips: int) -> Iterator[Config]:
    """Yield the config with all candidate meshes and remat policies."""
    sizes = (config.model.num_heads, config.model.num_kv_heads or 0, config.model.intermediate_size)
    length = config.data.max_length
    for tensor, context in itertools.product(TENSOR, CONTEXT):
        left = chips // (tensor * context)
        if chips % (tensor * context) or any(size % tensor for size in sizes) or length % context:
            continue
        if context > 1 and length < LONG and config.train.batch_size >= chips // tensor:
            continue
        for fsdp in (
            size for size in range(1, left + 1) if left % size == 0 and (size & (size - 1) == 0 or size == left)
        ):
            for remat in REMAT:
                mesh = dict(preset="fsdp", data=left // fsdp, fsdp=fsdp, context=context, tensor=tensor)
                yield replace(config, mesh=mesh, model={"remat": remat})


def _micro_batches(config: Config, topology: Topology, price: float | None, work: Workload) -> Iterator[ResourcePlan]:
    """Yield plans with 1, 2, ... micro-batches as long as the batch can be divided; none if the mesh is impossible."""
    size = config.train.batch_size
    for count in (n for n in range(1, size + 1) if size % n == 0):
        try:
            yield plan_run(
                replace(config, train={"accumulation_steps": count}), topology, price, work, only_fitting=True
            )
        except MeshError:
            return


def _nothing(config: Config, topology: Topology, nearest: ResourcePlan | None) -> str:
    if nearest is None:
        return (
            f"No mesh over the {topology.num_devices} devices of {topology} can divide a batch of "
            f"{config.train.batch_size} rows and this model. Choose a train.batch_size that is a multiple of the chips, or fewer chips."
        )
    return (
        f"Nothing fits {topology}: the plan with the least memory ({describe(nearest)}) needs {nearest.memory_bytes / GIB:.1f} GiB, but a "
        f"device has {nearest.device_bytes / GIB:.2f} GiB. Use more chips, chips with more memory, or a smaller model."
    )


def describe(plan: ResourcePlan) -> str:
    """Describe a plan's choices in one phrase."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return f"{mesh}, {plan.micro_batches} micro-batches, remat {plan.remat}"

"""Times of the instructions of an optimized program on a chip, one by one and along its schedule.

Two times are computed for each instruction:

  roof: its FLOPs over the peak, or its padded HBM bytes over the bandwidth, whichever is more;
  cycles: the compiler's own estimate (estimated_cycles) over the clock, at least the roof.

In both,

  a Pallas kernel takes its declared cost, or its FLOPs at KERNEL_RATE of the peak, whichever is more;
  a synchronous collective takes its bytes at the rate of the links of its mesh axes;
  an asynchronous collective, or a copy between memories, runs while the schedule goes on, one after the other on the links (or the copy
    engine), and costs what its end has to wait for;
  a loop takes its trip count times its body, and a computation takes at least its HBM bytes over the bandwidth.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

from lm_research.planning import communication, cost
from lm_research.planning.communication import Network
from lm_research.planning.program import Computation, Execution, Instruction, Program, executions, run_by

# Rate of Pallas kernels, as a fraction of the chip's peak; well-tuned attention kernels with heads of 64 to 128 reach it on TPUs.
KERNEL_RATE = 0.35
# Estimated cycles of fusions that the compiler cannot estimate, such as steps of a collective in a product of a few rows.
NO_ESTIMATE = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of a device: FLOP/s, bytes/s of HBM, clock in Hz, its network, and FLOP/s of products of 8-bit numbers."""

    flops: float
    hbm_bandwidth: float
    clock: float
    network: Network
    flops_8bit: float = 0.0


class Cost(NamedTuple):
    """Cost of one run of an instruction: seconds by `roof` and by `cycles`, and `beside` what follows it, if it is asynchronous."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    roof: float = 0.0
    cycles: float = 0.0
    beside: float = 0.0


class Timed(NamedTuple):
    """Seconds of one run of a computation: in all, by instruction, and what is waited for asynchronous ones, by their starts."""

    total: float
    by: dict[str, float]
    waits: dict[str, float]


class Schedule:
    """A program on a machine; `executed` has the instructions that run."""

    def __init__(self, program: Program, machine: Machine) -> None:
        """Prepare; costs and times are computed when they are asked for."""
        self.program, self.machine = program, machine
        self.executed = _merged(executions(program))
        self.cost = functools.cache(self._cost)
        self.timed = functools.cache(self._timed)

    def seconds(self, one: Execution, mode: str) -> float:
        """Return the seconds of an instruction in a step, by `roof` or by `cycles`."""
        return one.times * self.timed(one.computation.name, mode).by.get(one.instruction.name, 0.0)

    def link_seconds(self, computation: Computation, found: Instruction) -> float:
        """Return the time of a collective at the rate of the links; it may be in a fusion of the computation."""
        where = computation if found.name in computation.instructions else None
        size = communication.array_bytes(where, found)
        among = communication.group(found, self.machine.network)
        return communication.seconds(communication.kind_of(found) or "", size, among, self.machine.network)

    def _cost(self, computation: Computation, one: Instruction) -> Cost:
        moved = cost.hbm_bytes(self.program, computation, one)
        memory = moved / self.machine.hbm_bandwidth
        if (kernel := cost.kernel(computation, one)) is not None:
            return self._kernel_cost(kernel, moved)
        found = communication.collective(self.program, one)
        if found is None and one.opcode.endswith("-start"):
            return Cost(hbm_bytes=moved, beside=memory)
        link = self.link_seconds(computation, found[0]) if found else 0.0
        if found and one.opcode != "fusion":
            return Cost(beside=link) if found[1] else Cost(0.0, moved, max(link, memory), max(link, memory))
        total = busy = 0.0
        for where, product in cost.products(self.program, computation, one):
            operations = cost.flops(where, product)
            total += operations
            fast = self.machine.flops_8bit if cost.is_8bit(where, product) else 0.0
            busy += operations * cost.passes(product) / max(fast, self.machine.flops)
        roof = max(busy, memory)
        estimated = int(one.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        known = 0 if estimated == NO_ESTIMATE else estimated / self.machine.clock
        return Cost(total, moved, roof, max(roof, known), link)

    def _kernel_cost(self, kernel: cost.KernelCost, moved: float) -> Cost:
        moved = kernel.hbm_bytes or moved
        busy = kernel.flops / self.machine.flops / KERNEL_RATE
        seconds = max(busy, moved / self.machine.hbm_bandwidth)
        return Cost(kernel.flops, moved, seconds, seconds)

    def _timed(self, name: str, mode: str) -> Timed:
        computation = self.program.computations[name]
        now, by, waits = 0.0, dict[str, float](), dict[str, float]()
        free: dict[object, float] = collections.defaultdict(float)
        ends: dict[str, tuple[float, str]] = {}
        for one in computation.instructions.values():
            spent = self.cost(computation, one)
            if nested := run_by(self.program, computation, one):
                now += sum(count * self.timed(callee, mode).total for callee, count in nested)
                continue
            begins, ended = self._events(one, spent)
            if begins:
                queue = self._queue(one)
                free[queue] = max(now, free[queue]) + spent.beside
                ends[begins] = (free[queue], one.name)
            by[one.name] = spent.roof if mode == "roof" else spent.cycles
            now += by[one.name]
            if ended in ends:
                end, start = ends[ended]
                waits[start] = max(0.0, end - now)
                by[start] += waits[start]
                now = max(now, end)
        return Timed(now + self._crowded(computation, now, by), by, waits)

    def _crowded(self, computation: Computation, now: float, by: dict[str, float]) -> float:
        """Return the seconds by which copies make a computation longer, because they share HBM's bandwidth; add them to the copies'."""
        moved = {one.name: self.cost(computation, one).hbm_bytes for one in computation.instructions.values()}
        copies = {
            name: size
            for name, size in moved.items()
            if size and computation.instructions[name].opcode.endswith("-start")
        }
        rest = sum(moved.values()) / self.machine.hbm_bandwidth - now
        if rest <= 0 or not copies:
            return 0.0
        for name, size in copies.items():
            by[name] += rest * size / sum(copies.values())
        return rest

    def _events(self, one: Instruction, spent: Cost) -> tuple[str, str]:
        """Names of the asynchronous operations that an instruction starts and ends; empty if it does not."""
        if one.opcode.endswith("-done"):
            return "", one.operands[0]
        if not spent.beside or one.opcode != "fusion":
            return (one.name if spent.beside else ""), ""
        found = communication.collective(self.program, one)
        assert found, "a fusion with something beside it has a collective"
        name, phase = "channel " + communication.channel(found[0]), communication.phase(self.program, one)
        return (name if phase == "start" else ""), (name if phase == "done" else "")

    def _queue(self, one: Instruction) -> object:
        """What an asynchronous operation occupies: the links of mesh axes, or the copy engine."""
        found = communication.collective(self.program, one)
        return communication.group(found[0], self.machine.network).axes if found else "copies"


def _merged(found: Iterable[Execution]) -> list[Execution]:
    """Add up the executions of the same instruction from several callers."""
    times: dict[Instruction, Execution] = {}
    for one in found:
        before = times.get(one.instruction)
        times[one.instruction] = one._replace(times=one.times + before.times) if before else one
    return list(times.values())

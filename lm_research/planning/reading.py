"""Account of an optimized program: what its instructions cost on a chip, one by one and by the line of our code that they come from.

    result = compile_step(config, parse_topology("v5e:4x4"))       # planning/compiled.py
    result.reading.mfu(step_flops), result.reading.roof_seconds, result.reading.lines, ...

or from a shell, `python -m lm_research.plan --config=configs/bert_base.py --topology=v5e:4x4 --compile [--json=FILE]`.

Two times are computed for each instruction, and added up along the schedule with the trip counts of loops:

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
from lm_research.planning.communication import Group, Network
from lm_research.planning.program import HBM, Computation, Execution, Instruction, Program, executions, parse, run_by
from lm_research.planning.sources import UNKNOWN, Sources, origin

# Rate of Pallas kernels, as a fraction of the chip's peak; well-tuned attention kernels with heads of 64 to 128 reach it on TPUs.
KERNEL_RATE = 0.35
# Temporaries below this size are left out.
SMALL = 2**20


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of a device: FLOP/s, bytes/s of HBM, clock in Hz, and its network."""

    flops: float
    hbm_bandwidth: float
    clock: float
    network: Network


class Cost(NamedTuple):
    """Cost of one run of an instruction; a collective's time is `link`, a copy's is `copy`, both overlap if `overlaps`."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    roof: float = 0.0
    cycles: float = 0.0
    link: float = 0.0
    copy: float = 0.0
    overlaps: bool = False


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Collectives of a step that come from the same line and have arrays of the same size.

    Attributes:
      kind: such as all-gather.
      axes: mesh axes that it spans.
      devices: number of devices that communicate.
      times: number of times in a step, all together.
      array_bytes: bytes of its arrays, the larger of input and output, each time.
      overlapped: whether it is asynchronous.
      seconds: their time in a step at the rate of the links.
      exposed_seconds: the part of that time in which nothing else runs, by the estimated cycles.
      source: line that it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    times: int
    array_bytes: int
    overlapped: bool
    seconds: float
    exposed_seconds: float
    source: str


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel: times per step, FLOPs and seconds of all of them, and whether it declares its cost."""

    name: str
    times: int
    flops: float
    seconds: float
    declared: bool


@dataclasses.dataclass(frozen=True)
class Line:
    """Instructions that come from the same line of code, in a step; `operation` is what the dearest of them does."""

    source: str
    operation: str
    instructions: int
    cycles_seconds: float
    roof_seconds: float
    flops: float
    hbm_bytes: float


@dataclasses.dataclass(frozen=True)
class Temporary:
    """Arrays in HBM of the same type that come from the same line; `count` instructions make them, one each."""

    source: str
    operation: str
    array: str
    num_bytes: int
    count: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """A step of a program on a chip's device.

    Attributes:
      flops: floating-point operations of matrix products and kernels.
      hbm_bytes: bytes between HBM and chip, padding included.
      roof_seconds: time by roof, see above.
      cycles_seconds: time by cycles, see above.
      synchronous_bytes: bytes of arrays of collectives that nothing overlaps.
      transfers: collectives, the longest first.
      kernels: Pallas kernels, the longest first.
      lines: lines of code, the most expensive (by cycles) first.
      temporaries: arrays in HBM, the largest first.
    """

    flops: float
    hbm_bytes: float
    roof_seconds: float
    cycles_seconds: float
    synchronous_bytes: float
    transfers: tuple[Transfer, ...]
    kernels: tuple[Kernel, ...]
    lines: tuple[Line, ...]
    temporaries: tuple[Temporary, ...]


def read(text: str, machine: Machine) -> Reading:
    """Read the text of an optimized module, `compiled.as_text()`."""
    return _Reader(parse(text), machine).reading()


class _Timed(NamedTuple):
    """Seconds of one run of a computation: in all, by instruction, and what is waited for asynchronous ones, by their starts."""

    total: float
    by: dict[str, float]
    waits: dict[str, float]


class _Reader:
    """A program on a machine, and what has been computed about it."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program, self.machine, self.sources = program, machine, Sources(program)
        self.executed = _merged(executions(program))
        self.timed = functools.cache(self._timed)
        self.cost = functools.cache(self._cost)

    def reading(self) -> Reading:
        """The whole account."""
        totals = [(one, self.cost(one.computation, one.instruction)) for one in self.executed]
        transfers = self._transfers()
        return Reading(
            flops=sum(one.times * c.flops for one, c in totals),
            hbm_bytes=sum(one.times * c.hbm_bytes for one, c in totals),
            roof_seconds=self.timed(self.program.entry, "roof").total,
            cycles_seconds=self.timed(self.program.entry, "cycles").total,
            synchronous_bytes=float(sum(t.times * t.array_bytes for t in transfers if not t.overlapped)),
            transfers=transfers,
            kernels=self._kernels(),
            lines=self._lines(),
            temporaries=self._temporaries(),
        )

    def _cost(self, computation: Computation, one: Instruction) -> Cost:
        program, machine = self.program, self.machine
        moved = cost.hbm_bytes(program, computation, one)
        memory = moved / machine.hbm_bandwidth
        if one.opcode.endswith("-start") and communication.collective(program, one) is None:
            return Cost(hbm_bytes=moved, copy=memory, overlaps=True)
        kernel = cost.kernel(computation, one)
        if kernel is not None:
            declared = max(kernel.flops / machine.flops, (kernel.hbm_bytes or moved) / machine.hbm_bandwidth)
            seconds = max(declared, kernel.flops / machine.flops / KERNEL_RATE)
            return Cost(kernel.flops, kernel.hbm_bytes or moved, seconds, seconds)
        found = communication.collective(program, one)
        link = self._link_seconds(computation, *found) if found else 0.0
        if found and one.opcode != "fusion":
            moved = 0.0 if found[1] else moved
            return Cost(0.0, moved, link, link, link, overlaps=found[1])._replace(
                roof=0.0 if found[1] else max(link, memory), cycles=0.0 if found[1] else max(link, memory)
            )
        total = busy = 0.0
        for where, product in cost.products(program, computation, one):
            operations = cost.flops(where, product)
            total += operations
            busy += operations * cost.passes(product) / machine.flops
        roof = max(busy, memory)
        estimated = int(one.attribute(r'"estimated_cycles":"(\d+)"') or 0) / machine.clock
        return Cost(total, moved, roof, max(roof, estimated), link, overlaps=found is not None)

    def _link_seconds(self, computation: Computation, found: Instruction, overlaps: bool) -> float:
        kind = communication.kind_of(found) or ""
        where = computation if found.name in computation.instructions else None
        size = communication.array_bytes(where, found)
        return communication.seconds(kind, size, self._group(found), self.machine.network)

    def _group(self, one: Instruction) -> Group:
        return communication.group(one, self.machine.network)

    def _timed(self, name: str, mode: str) -> _Timed:
        """Run the schedule of a computation."""
        computation = self.program.computations[name]
        now, by, waits = 0.0, dict[str, float](), dict[str, float]()
        free: dict[object, float] = collections.defaultdict(float)
        ends: dict[str, tuple[float, str]] = {}
        moved, copies = 0.0, dict[str, float]()
        for one in computation.instructions.values():
            spent = self.cost(computation, one)
            moved += spent.hbm_bytes
            if nested := run_by(self.program, computation, one):
                now += sum(count * self.timed(callee, mode).total for callee, count in nested)
                continue
            begins, ended = self._events(one, spent)
            if begins:
                queue = self._queue(one)
                free[queue] = max(now, free[queue]) + (spent.link or spent.copy)
                ends[begins] = (free[queue], one.name)
            if spent.copy:
                copies[one.name] = spent.hbm_bytes
            work = spent.roof if mode == "roof" else spent.cycles
            by[one.name] = by.get(one.name, 0.0) + work
            now += work
            if ended in ends:
                end, start = ends[ended]
                waits[start] = waits.get(start, 0.0) + max(0.0, end - now)
                by[start] = by.get(start, 0.0) + max(0.0, end - now)
                now = max(now, end)
        rest = moved / self.machine.hbm_bandwidth - now
        if rest > 0 and copies:
            for copy, size in copies.items():
                by[copy] = by.get(copy, 0.0) + rest * size / sum(copies.values())
            now += rest
        return _Timed(now, by, waits)

    def _events(self, one: Instruction, spent: Cost) -> tuple[str, str]:
        """Names of the asynchronous operations that an instruction starts and ends; empty if it does not."""
        if one.opcode.endswith("-done"):
            return "", one.operands[0]
        if not spent.overlaps or one.opcode != "fusion":
            return one.name * spent.overlaps, ""
        found = communication.collective(self.program, one)
        assert found, "a fusion that overlaps has a collective"
        name, phase = "channel " + communication.channel(found[0]), communication.phase(self.program, one)
        return name * (phase == "start"), name * (phase == "done")

    def _queue(self, one: Instruction) -> object:
        found = communication.collective(self.program, one)
        return self._group(found[0]).axes if found else "copies"

    def _seconds(self, one: Execution, mode: str) -> float:
        return one.times * self.timed(one.computation.name, mode).by.get(one.instruction.name, 0.0)

    def _transfers(self) -> tuple[Transfer, ...]:
        steps: dict[str, list[Execution]] = collections.defaultdict(list)
        for one in self.executed:
            if (found := communication.collective(self.program, one.instruction)) is not None:
                fused = one.instruction.opcode == "fusion"
                steps[communication.channel(found[0]) if fused else one.instruction.name].append(one)
        alike: dict[object, Transfer] = {}
        for places in steps.values():
            made = self._transfer(places)
            key = (made.kind, made.axes, made.devices, made.array_bytes, made.overlapped, made.source)
            if (before := alike.get(key)) is not None:
                made = dataclasses.replace(
                    made,
                    times=before.times + made.times,
                    seconds=before.seconds + made.seconds,
                    exposed_seconds=before.exposed_seconds + made.exposed_seconds,
                )
            alike[key] = made
        return tuple(sorted(alike.values(), key=lambda t: -t.seconds))

    def _transfer(self, places: list[Execution]) -> Transfer:
        """Describe one collective, the parts of which are in `places`."""
        first, times = places[0], min(one.times for one in places)  # steps may be in loops
        found = communication.collective(self.program, first.instruction)
        assert found, "all places have a collective"
        part, overlapped = found
        where = first.computation if part is first.instruction else None
        size = communication.array_bytes(where, part)
        kind, among = communication.kind_of(part) or "", self._group(part)
        seconds = times * communication.seconds(kind, size, among, self.machine.network)
        timed = [(one, self.timed(one.computation.name, "cycles").waits) for one in places]
        waited = sum(one.times * waits.get(one.instruction.name, 0.0) for one, waits in timed)
        exposed = waited if overlapped else seconds
        return Transfer(
            kind,
            among.axes,
            among.size,
            times,
            size,
            overlapped,
            seconds,
            exposed,
            self.sources.line(first.computation, part),
        )

    def _kernels(self) -> tuple[Kernel, ...]:
        found: dict[str, Kernel] = {}
        for one in self.executed:
            kernel = cost.kernel(one.computation, one.instruction)
            if kernel is None:
                continue
            before = found.get(kernel.name, Kernel(kernel.name, 0, 0.0, 0.0, kernel.declared))
            found[kernel.name] = Kernel(
                kernel.name,
                before.times + one.times,
                before.flops + one.times * kernel.flops,
                before.seconds + self._seconds(one, "cycles"),
                kernel.declared,
            )
        return tuple(sorted(found.values(), key=lambda k: -k.seconds))

    def _lines(self) -> tuple[Line, ...]:
        groups: dict[str, list[Execution]] = collections.defaultdict(list)
        for one in self.executed:
            if self._seconds(one, "cycles"):
                groups[self._line(one)].append(one)
        lines = []
        for source, members in groups.items():
            costs = [(one.times, self.cost(one.computation, one.instruction)) for one in members]
            dearest = max(members, key=lambda one: self._seconds(one, "cycles"))
            lines.append(
                Line(
                    source,
                    describe(dearest.instruction),
                    len(members),
                    sum(self._seconds(one, "cycles") for one in members),
                    sum(self._seconds(one, "roof") for one in members),
                    sum(times * c.flops for times, c in costs),
                    sum(times * c.hbm_bytes for times, c in costs),
                )
            )
        return tuple(sorted(lines, key=lambda line: -line.cycles_seconds))

    def _temporaries(self) -> tuple[Temporary, ...]:
        entry = self.program.computations[self.program.entry]
        results = {*entry.root.operands, entry.root.name}
        found: dict[tuple[str, str], Temporary] = {}
        for one in self.executed:
            made = one.instruction
            if made.opcode in cost.FREE or cost.is_free_call(made) or made.opcode.endswith("-start"):
                continue
            if one.computation is entry and made.name in results:
                continue
            maker, source = origin(self.program, one.computation, made)[1], self._line(one)
            for array in made.arrays:
                if array.space != HBM or array.padded_bytes < SMALL:
                    continue
                shape = f"{array.dtype}[{','.join(map(str, array.dims))}]"
                count = found[source, shape].count if (source, shape) in found else 0
                found[source, shape] = Temporary(source, describe(maker), shape, array.padded_bytes, count + 1)
        return tuple(sorted(found.values(), key=lambda t: -t.num_bytes))

    def _line(self, one: Execution) -> str:
        """The source line of an instruction: of what it stores, or else of itself."""
        source = self.sources.line(*origin(self.program, one.computation, one.instruction))
        return source if source != UNKNOWN else self.sources.line(one.computation, one.instruction)


def describe(one: Instruction) -> str:
    """Return the operation that an instruction comes from, by its last part, or its name."""
    name = one.attribute(r'op_name="([^"]*)"')
    return name.rpartition("/")[2] if name else one.name


def _merged(found: Iterable[Execution]) -> list[Execution]:
    """Add up the executions of the same instruction from several callers."""
    times: dict[Instruction, Execution] = {}
    for one in found:
        before = times.get(one.instruction)
        times[one.instruction] = one._replace(times=one.times + before.times) if before else one
    return list(times.values())

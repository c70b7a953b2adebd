"""Account of an optimized program: what its instructions cost on a chip, one by one and by the line of our code that they come from.

    result = compile_step(config, parse_topology("v5e:4x4"))       # planning/compiled.py
    result.roof_mfu, result.cycles_mfu, result.reading.lines, result.reading.transfers, ...

or from a shell, `python -m lm_research.plan --config=configs/bert_base.py --topology=v5e:4x4 --compile [--json=FILE]`.

The times by roof and by cycles, and the model of what overlaps, are those of planning/schedule.py.
"""

from __future__ import annotations

import collections
import dataclasses

from lm_research.planning import communication, cost
from lm_research.planning.program import HBM, Computation, Execution, Instruction, parse
from lm_research.planning.schedule import Machine, Schedule
from lm_research.planning.sources import UNKNOWN, Sources, origin

# Temporaries below this size are left out.
SMALL = 2**20


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
    """Arrays in HBM of the same type that come from the same line; `count` instructions make them, one each, first of all `instruction`."""

    source: str
    operation: str
    instruction: str
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

    def float32(self) -> tuple[Temporary, ...]:
        """Return the temporaries in float32, those with the most bytes in all first."""
        found = (one for one in self.temporaries if one.array.startswith("f32["))
        return tuple(sorted(found, key=lambda t: -t.num_bytes * t.count))


def read(text: str, machine: Machine) -> Reading:
    """Read the text of an optimized module, `compiled.as_text()`."""
    return _Reader(Schedule(parse(text), machine)).reading()


class _Reader:
    """A schedule, and the lines of code that its instructions come from."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.program, self.executed = schedule, schedule.program, schedule.executed
        self.cost, self.seconds, self.sources = schedule.cost, schedule.seconds, Sources(schedule.program)

    def reading(self) -> Reading:
        """The whole account."""
        totals = [(one, self.cost(one.computation, one.instruction)) for one in self.executed]
        transfers = self._transfers()
        return Reading(
            flops=sum(one.times * c.flops for one, c in totals),
            hbm_bytes=sum(one.times * c.hbm_bytes for one, c in totals),
            roof_seconds=self.schedule.timed(self.program.entry, "roof").total,
            cycles_seconds=self.schedule.timed(self.program.entry, "cycles").total,
            synchronous_bytes=float(sum(t.times * t.array_bytes for t in transfers if not t.overlapped)),
            transfers=transfers,
            kernels=self._kernels(),
            lines=self._lines(),
            temporaries=self._temporaries(),
        )

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
        kind, among = communication.kind_of(part) or "", communication.group(part, self.schedule.machine.network)
        seconds = times * self.schedule.link_seconds(first.computation, part)
        timed = [(one, self.schedule.timed(one.computation.name, "cycles").waits) for one in places]
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
                before.seconds + self.seconds(one, "cycles"),
                kernel.declared,
            )
        return tuple(sorted(found.values(), key=lambda k: -k.seconds))

    def _lines(self) -> tuple[Line, ...]:
        groups: dict[str, list[Execution]] = collections.defaultdict(list)
        for one in self.executed:
            if self.seconds(one, "cycles"):
                groups[self._line(one)].append(one)
        lines = []
        for source, members in groups.items():
            costs = [(one.times, self.cost(one.computation, one.instruction)) for one in members]
            dearest = max(members, key=lambda one: self.seconds(one, "cycles"))
            lines.append(
                Line(
                    source,
                    describe(dearest.instruction),
                    len(members),
                    sum(self.seconds(one, "cycles") for one in members),
                    sum(self.seconds(one, "roof") for one in members),
                    sum(times * c.flops for times, c in costs),
                    sum(times * c.hbm_bytes for times, c in costs),
                )
            )
        return tuple(sorted(lines, key=lambda line: -line.cycles_seconds))

    def _temporaries(self) -> tuple[Temporary, ...]:
        entry = self.program.computations[self.program.entry]
        results = _results(entry)
        found: dict[tuple[str, str], Temporary] = {}
        for one in self.executed:
            made = one.instruction
            if made.opcode in cost.FREE or cost.is_free_call(made) or made.opcode.endswith("-start"):
                continue
            maker, source = origin(self.program, one.computation, made)[1], self._line(one)
            for number, array in enumerate(made.arrays):
                if array.space != HBM or array.padded_bytes < SMALL:
                    continue
                if one.computation is entry and (made.name, number) in results:
                    continue
                shape = f"{array.dtype}[{','.join(map(str, array.dims))}]"
                if (before := found.get((source, shape))) is None:
                    before = Temporary(source, describe(maker), made.name, shape, array.padded_bytes, 0)
                found[source, shape] = dataclasses.replace(before, count=before.count + 1)
        return tuple(sorted(found.values(), key=lambda t: -t.num_bytes))

    def _line(self, one: Execution) -> str:
        """The source line of an instruction: of what it stores, or else of itself."""
        source = self.sources.line(*origin(self.program, one.computation, one.instruction))
        return source if source != UNKNOWN else self.sources.line(one.computation, one.instruction)


def _results(entry: Computation) -> set[tuple[str, int]]:
    """Return the arrays that a program returns: the names of the instructions that compute them, and their numbers there."""
    found = {(entry.root.name, 0)}
    for one in entry.operands(entry.root):
        number = 0
        while one.opcode in ("bitcast", "get-tuple-element") and (before := entry.operands(one)):
            number, one = int(one.attribute(r"index=(\d+)") or number), before[0]
        found.add((one.name, number))
    return found


def describe(one: Instruction) -> str:
    """Return the operation that an instruction comes from, by its last part, or its name."""
    name = one.attribute(r'op_name="([^"]*)"')
    return name.rpartition("/")[2] if name else one.name

"""Parser of optimized HLO modules: the text of `compiled.as_text()` as computations, instructions and array shapes.

    program = parse(compiled.as_text())
    for step in executions(program): ...

`executions` lists the instructions that the device runs, each with the number of times that it runs in a step. Instructions inside
fusions are not among them: a fusion is one instruction, and `Program.computations[callee]` has its parts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Memory space of arrays without S(n) in their layout. S(1) is VMEM, S(2) holds semaphores, S(5) is host memory.
HBM = 0
HOST = 5

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = (?=[(a-z])")
_ARRAY = re.compile(
    r"\b([a-z]+(\d*)\w*)\[([^\]]*)\](?:\{([^{}]*)\})?"
)  # f8e4m3fn[4,8]{1,0:T(8,128)}; pred, a byte, names no bits
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLEE = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_COMMENT = re.compile(r"/\*.*?\*/")


class Array(NamedTuple):
    """Shape, layout and memory space of an array.

    `order` has the dimensions from minor to major, `tile` the sides of the tile of the minor ones.
    """

    dtype: str
    bits: int
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes without padding."""
        return self.elements * self.bits // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes in memory: the minor dimensions are rounded up to whole tiles."""
        sides = [self.dims[axis] for axis in reversed(self.order)] if self.order else list(self.dims)
        for back, side in enumerate(reversed(self.tile), start=1):
            if back <= len(sides):
                sides[-back] = -(-sides[-back] // side) * side
        return math.prod(sides) * self.bits // 8


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """An instruction.

    Attributes:
      name: its name, without %.
      opcode: such as fusion or all-reduce-start.
      arrays: its results; those of nested tuples one after the other.
      operands: names of its operands.
      argument: text between the parentheses: the value of a constant, the number of a parameter.
      attributes: text behind the parentheses.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    @functools.cached_property
    def callees(self) -> dict[str, str]:
        """Computations that it calls, by role (calls, to_apply, body, ...); branches are numbered."""
        found = {role: name for role, name in _CALLEE.findall(self._plain)}
        if branches := _BRANCHES.search(self._plain):
            found |= {f"branch {n}": name.strip(" %") for n, name in enumerate(branches[1].split(","))}
        return found

    @functools.cached_property
    def _plain(self) -> str:
        """The attributes before those with free text."""
        return re.split(r", (?:metadata|backend_config)=", self.attributes, maxsplit=1)[0]

    def attribute(self, pattern: str) -> str | None:
        """Return the first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A computation: its instructions by name, in the order of execution."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction that gives the result."""
        return next(one for one in reversed(self.instructions.values()) if one.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {int(one.argument): one for one in self.instructions.values() if one.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have an instruction as operand, by its name."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions.values():
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found

    def operands(self, one: Instruction) -> list[Instruction]:
        """The instructions that compute the operands of `one`."""
        return [self.instructions[name] for name in one.operands if name in self.instructions]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A module: its computations by name, the entry's name, and the module's header with its tables of source lines."""

    computations: dict[str, Computation]
    entry: str
    header: str

    def called(self, one: Instruction, role: str = "calls") -> Computation | None:
        """The computation that an instruction calls in a role, or None."""
        return self.computations.get(one.callees.get(role, ""))


class Execution(NamedTuple):
    """An instruction that runs `times` in a step, in its computation."""

    instruction: Instruction
    computation: Computation
    times: int


def parse(text: str) -> Program:
    """Parse the text of a module.

    A computation ends at a line that is only `}` (or has an execution thread behind it). Lines that do not begin an instruction belong to
    the one before: the configuration of a Pallas kernel takes several lines, some of which begin with `}}`.
    """
    computations: dict[str, Computation] = {}
    entry, name, header = "", "", list[str]()
    lines: list[str] = []
    for line in text.splitlines():
        if not name:
            if match := _HEADER.match(line):
                name, lines = match[2], []
                entry = name if match[1] else entry
            else:
                header.append(line)
        elif line.rstrip() == "}" or line.startswith("}, execution_thread"):
            found = (_instruction(one) for one in lines)
            computations[name] = Computation(name, {one.name: one for one in found if one})
            name = ""
        elif _INSTRUCTION.match(line) or not lines:
            lines.append(line)
        else:
            lines[-1] += "\n" + line
    return Program(
        {name: _with_copies(one, computations) for name, one in computations.items()}, entry, "\n".join(header)
    )


def _with_copies(computation: Computation, computations: dict[str, Computation]) -> Computation:
    """Rename asynchronous calls of a mere slice to slice-start, their name in `compiled.as_text()`; the compiler's dump calls them async-start."""

    def renamed(one: Instruction) -> Instruction:
        called = computations.get(one.callees.get("calls", "")) if one.opcode == "async-start" else None
        is_slice = called is not None and called.root.opcode == "slice"
        return dataclasses.replace(one, opcode="slice-start") if is_slice else one

    return Computation(computation.name, {name: renamed(one) for name, one in computation.instructions.items()})


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    begin = match.end()
    end = _closing(line, begin) if line[begin] == "(" else line.find(" ", begin)
    opcode = _OPCODE.match(line, end)
    if end < 0 or not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    argument = line[opcode.end() : close - 1]
    names = re.findall(r"%([\w.\-]+)", argument)
    return Instruction(
        match[2], opcode[1], arrays(line[begin:end]), tuple(names), argument, line[close:], bool(match[1])
    )


def _closing(text: str, begin: int) -> int:
    """Return the position behind the parenthesis that closes the one at `begin`; quoted text does not count."""
    depth, at, quoted = 0, begin, False
    for found in re.compile(r'[()"]').finditer(text, begin):
        at = found.end()
        if found[0] == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if found[0] == "(" else -1
            if not depth:
                return at
    return at


@functools.cache
def arrays(text: str) -> tuple[Array, ...]:
    """Parse the text of a shape; a tuple has several arrays."""
    return tuple(_array(*found.groups()) for found in _ARRAY.finditer(_COMMENT.sub("", text)))


def _array(dtype: str, bits: str, sides: str, layout: str | None) -> Array:
    dims = tuple(int(side.lstrip(" <=")) for side in sides.split(",") if side.strip())
    order, _, rest = (layout or "").partition(":")
    tile = re.search(r"T\(([\d,*]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Array(
        dtype,
        int(bits or 8),
        dims,
        tuple(int(axis) for axis in order.split(",") if axis),
        tuple(1 if side == "*" else int(side) for side in tile[1].split(",")) if tile else (),
        int(space[1]) if space else HBM,
    )


def executions(program: Program) -> Iterator[Execution]:
    """List the instructions that run in a step, those of loops' bodies with their trip counts; each branch runs every time.

    Instructions of the same computation are in the order of the schedule.
    """
    waiting = [(program.entry, 1)]
    while waiting:
        name, times = waiting.pop()
        computation = program.computations.get(name)
        for one in computation.instructions.values() if computation else ():
            assert computation is not None
            yield Execution(one, computation, times)
            waiting += [(callee, times * count) for callee, count in run_by(program, computation, one)]


def run_by(program: Program, computation: Computation, one: Instruction) -> list[tuple[str, int]]:
    """Computations whose instructions run, one after the other, each time that `one` runs, and how often."""
    if one.opcode == "while":
        return [(one.callees["body"], trip_count(program, computation, one))]
    if one.opcode in ("call", "conditional", "async-start"):
        return [(name, 1) for name in one.callees.values()]
    return []


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int:
    """Return the number of iterations of a loop: as annotated, or (limit - start) / step as its condition and body have them, or else 1."""
    if annotated := loop.attribute(r'"?known_trip_count"?:?=?\{"n":"(\d+)"'):
        return int(annotated)
    condition, body = program.called(loop, "condition"), program.called(loop, "body")
    found = _comparison(program, condition) if condition else None
    if not found or not body:
        return 1
    index, direction, limit = found
    first = _operand(computation, loop.operands[0], index) if loop.operands else None
    start = _constant(program, first[0], first[1]) if first else None
    step = _step(program, body, index)
    inside = direction in ("LE", "GE")
    count = (limit - (start or 0)) / (step or 1)
    return max(1, math.floor(count) + 1 if inside else math.ceil(count))


def _comparison(program: Program, condition: Computation) -> tuple[int, str, int] | None:
    """Return (index of the counter in the state, direction, limit) of the comparison that ends a loop."""
    where, one = _inside(program, condition, condition.root)
    if one.opcode != "compare":
        return None
    direction = one.attribute(r"direction=(\w\w)") or "LT"
    if len(one.operands) != 2:
        return None
    left, right = (_trace(program, where, name, condition) for name in one.operands)
    if isinstance(left, str) and isinstance(right, int):
        return int(left), direction, right
    if isinstance(left, int) and isinstance(right, str):
        return int(right), direction.translate(str.maketrans("LG", "GL")), left
    return None


def _inside(program: Program, where: Computation, one: Instruction) -> tuple[Computation, Instruction]:
    """Follow a fusion, a call or a copy to the instruction that computes its result."""
    while True:
        callee = program.called(one) or (program.called(one, "to_apply") if one.opcode == "call" else None)
        if callee is not None and one.opcode in ("fusion", "call"):
            where, one = callee, callee.root
        elif one.opcode in ("copy", "bitcast", "convert", "reshape") and one.operands[0] in where.instructions:
            one = where.instructions[one.operands[0]]
        else:
            return where, one


def _trace(program: Program, where: Computation, name: str, outer: Computation) -> int | str | None:
    """Return the value of a constant, or the index (as text) of the element of the loop's state that an operand is."""
    one = where.instructions.get(name)
    if one is None:
        return None
    if one.opcode == "constant":
        return int(one.argument) if re.fullmatch(r"-?\d+", one.argument) else None
    if one.opcode == "get-tuple-element":
        return one.attribute(r"index=(\d+)")
    if one.opcode in ("copy", "bitcast", "convert", "reshape"):
        return _trace(program, where, one.operands[0], outer)
    if one.opcode == "parameter" and where is not outer:  # of a fusion in the condition
        call = next((o for o in outer.instructions.values() if program.called(o) is where), None)
        return _trace(program, outer, call.operands[int(one.argument)], outer) if call else None
    return None


def _operand(computation: Computation, name: str, index: int) -> tuple[Computation, Instruction] | None:
    """Return the instruction that computes an element of a tuple."""
    one = computation.instructions.get(name)
    while one is not None and one.opcode in ("copy", "opt-barrier"):
        one = computation.instructions.get(one.operands[0])
    if one is None or one.opcode != "tuple" or index >= len(one.operands):
        return None
    element = computation.instructions.get(one.operands[index])
    return (computation, element) if element else None


def _constant(program: Program, where: Computation, one: Instruction) -> int | None:
    where, one = _inside(program, where, one)
    return int(one.argument) if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.argument) else None


def _step(program: Program, body: Computation, index: int) -> int | None:
    """Return what a loop's body adds to element `index` of the state, or None if it is no constant."""
    found = _operand(body, body.root.name, index)
    if not found:
        return None
    where, one = _inside(program, *found)
    if one.opcode not in ("add", "subtract"):
        return None
    for name in one.operands:
        value = _trace(program, where, name, body)
        if isinstance(value, int):
            return value if one.opcode == "add" else -value
    return None

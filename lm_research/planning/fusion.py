"""Kernels of a traced program: what a compiler that fuses elementwise operations would run, with its products and memory traffic.

XLA fuses elementwise operations and reductions with the operation that produces their input, so an intermediate value passes through
memory only if another kernel needs it (Snider and Liang 2023, "Operator Fusion in XLA"). `kernels` applies this to a jaxpr:

- a matrix product, a gather, a sort or a Pallas call begins a kernel;
- an elementwise operation joins the kernel that produces its large operands (the last one, if there are several);
- a reduction joins the kernel of its operand, but its result is known only after the whole kernel: what depends on it begins another;
- values computed from small arrays (masks, random bits, broadcasts of vectors) are computed again wherever they are needed, and others
  wherever that moves fewer bytes than to write and read them;
- a conversion to a type of more bytes moves those of the narrow one;
- a kernel reads each operand from outside once, and writes what other kernels or the result of the program need;
- an unrolled loop is a program of all its iterations; what it stacks is copied if something else than a loop reads it;
- another loop's body is a program whose operands and results are in memory, times the number of iterations; what an iteration keeps for
  the backward pass is copied into stacks, except for what jax.checkpoint keeps, which its kernels write there.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from lm_research.planning.kernels import (
    Kernel,
    Product,
    array,
    called,
    item_bytes,
    padded_bytes,
    product_of,
    products_in,
)

# Operations that only rename, reshape or mark a value.
_ALIASES = frozenset(
    "sharding_constraint optimization_barrier copy copy_p name pvary device_put stop_gradient reduce_precision "
    "squeeze expand_dims reshape mesh_cast layout_constraint".split()
)
_CALLS = frozenset(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat remat2 checkpoint shard_map "
    "custom_lin".split()
)
_REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin reduce_precision_sum".split()
)
_STANDALONE = frozenset(
    "gather scatter scatter-add scatter_add sort cumsum cumlogsumexp cummax cumprod while top_k dynamic_update_slice "
    "random_bits threefry2x32 all_to_all ppermute psum all_gather reduce_scatter psum_invariant".split()
)
_TRANSCENDENTAL = frozenset("erf exp exp2 expm1 log log1p logistic sin cos tan tanh pow erf_inv cbrt".split())
_INTEGER = frozenset("xor shift_left shift_right_logical mul and or".split())
# Integer operations on all elements after which a value that no array determines is taken for random bits.
_MIXED = 4
# A value with at most this fraction of an operation's elements is read where it is needed, and attracts nothing.
_SMALL = 0.2
# Number of values in memory from which one is computed again at most.
_MAX_LEAVES = 6
# Number of elementwise operations in a row that are computed again at most.
_MAX_STEPS = 12


@dataclasses.dataclass(eq=False)
class _Value:
    """A value of the program.

    Attributes:
      elements, num_bytes: size.
      kernel: number of the kernel that produces it; -1 if it is in memory from the start.
      needs: kernels that must end before it is known: its own, of a reduction, and those of the values that a free one is computed from.
      free: whether it is computed anew in each kernel that needs it.
      mixed: number of operations on integers that compute a free one.
      inputs: values from which an elementwise operation computes this one, without free ones; empty if another kind of operation does.
      needed: whether the result of the computation has it, or a loop reads it.
      users: other kernels that read it.
      kept: whether jax.checkpoint keeps it, which marks it with reduce_precision.
    """

    elements: int
    num_bytes: float
    kernel: int = -1
    needs: frozenset[int] = frozenset()
    free: bool = False
    mixed: int = 0
    inputs: tuple[_Value, ...] = ()
    needed: bool = False
    users: set[int] = dataclasses.field(default_factory=set)
    kept: bool = False
    parts: tuple[_Value, ...] = ()

    @property
    def kernels(self) -> frozenset[int]:
        """The kernels that it depends on directly."""
        return self.needs if self.kernel < 0 else self.needs | {self.kernel}


_Leaves = dict[_Value, tuple[tuple[_Value, ...], float]]


def kernels(program: ClosedJaxpr, parts: int = 1) -> list[Kernel]:
    """List the kernels of a program, in order, with those of its loops.

    Args:
      program: the program.
      parts: number of devices that share what is outside of jax.shard_map, whose inside is that of one device.
    """
    jaxpr = program.jaxpr
    body = _Body(1.0, parts)
    inputs = [body.stored(array(var)) for var in (*jaxpr.constvars, *jaxpr.invars)]
    for value in body.run(jaxpr, inputs):
        body.whole(value).needed = True
    return body.finish()


class _Body:
    """The kernels of one computation: a program, or the body of a loop."""

    def __init__(self, times: float, parts: int) -> None:
        self.times, self.parts = times, parts
        self.kernels: list[Kernel] = []
        self.spaces: list[int] = []  # elements that a kernel iterates over
        self.before: list[set[int]] = []  # kernels that a kernel needs directly
        self.values: list[_Value] = []
        self.inner: list[Kernel] = []
        self.removed: set[int] = set()

    def stored(self, aval: Any) -> _Value:
        """A value in memory."""
        return self._value(aval)

    def _value(self, aval: Any, **fields: Any) -> _Value:
        value = _Value(math.prod(aval.shape), padded_bytes(aval), **fields)
        self.values.append(value)
        return value

    def run(self, jaxpr: Jaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Place the operations of a jaxpr in kernels, and return its results."""
        found: dict[Var, _Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
        live = _live(jaxpr)

        def read(atom: Any) -> _Value:
            return self._value(array(atom), free=True) if isinstance(atom, Literal) else found[atom]

        for equation, used in zip(jaxpr.eqns, live, strict=True):
            if used:
                results = self._place(equation, [read(atom) for atom in equation.invars])
                found.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _place(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        name, params = equation.primitive.name, equation.params
        avals = [array(var) for var in equation.outvars]
        if name in _ALIASES and len(operands) == len(avals):
            for one in operands:
                one.kept = one.kept or name == "reduce_precision"
            return operands
        if name in _ALIASES or (
            name == "convert_element_type" and item_bytes(avals[0]) >= item_bytes(array(equation.invars[0]))
        ):
            return operands[:1]  # a kernel that needs more bytes for an element widens them itself
        if name == "scan" and params["unroll"] >= params["length"]:
            return self._unrolled(equation, operands)
        if name not in _CALLS:
            operands = [self.whole(one) for one in operands]
        if name == "scan":
            return self._scan(equation, operands)
        if name == "pallas_call":
            return self._custom(equation, operands)
        if name == "cond":
            branch = max(params["branches"], key=lambda one: len(one.jaxpr.eqns))
            return self.run(branch.jaxpr, [self.stored(array(v)) for v in branch.jaxpr.constvars] + operands[1:])
        inner = called(params) if name in _CALLS else None
        if inner is not None:
            jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            outside, self.parts = self.parts, 1 if name == "shard_map" else self.parts
            results = self.run(jaxpr, [self.stored(array(var)) for var in jaxpr.constvars] + operands)
            self.parts = outside
            return results
        if name in ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"):
            return [self._product(equation, operands)]
        if name in _REDUCTIONS:
            return [self._reduce(avals[0], operands[0], name)] if len(avals) == 1 else self._alone(equation, operands)
        if name in _STANDALONE or name == "dynamic_slice":
            return self._alone(equation, operands)
        return [self._elementwise(aval, operands, name) for aval in avals]

    def _begin(self, name: str, elements: int) -> int:
        self.kernels.append(Kernel(self.times / self.parts, name))
        self.spaces.append(elements)
        self.before.append(set())
        return len(self.kernels) - 1

    def _depends(self, one: int, other: int) -> bool:
        """Whether a kernel needs another, directly or not."""
        waiting, seen = [one], {one}
        while waiting:
            for kernel in self.before[waiting.pop()] - seen:
                if kernel == other:
                    return True
                seen.add(kernel)
                waiting.append(kernel)
        return False

    def _may_join(self, home: int, operands: Sequence[_Value], elements: int) -> bool:
        """Whether an operation on operands may be a part of a kernel: none of them needs the end of the kernel."""
        if self.spaces[home] < _SMALL * elements or any(home in one.needs for one in operands):
            return False
        others = {kernel for one in operands for kernel in one.kernels} - {home}
        return not any(self._depends(kernel, home) for kernel in others)

    def _read(self, kernel: int, value: _Value) -> None:
        """Make a value available inside a kernel: compute it again from others if that moves fewer bytes than reading it."""
        if value.free:
            self.before[kernel] |= value.kernels
            if value.mixed >= _MIXED and value.elements > _SMALL * self.spaces[kernel]:
                self.kernels[kernel].costly += value.elements
        for one in () if value.free else self._leaves(kernel, value, {})[0]:
            self.before[kernel] |= one.kernels - {kernel}
            if one.kernel != kernel:
                one.users.add(kernel)

    def _leaves(
        self, kernel: int, value: _Value, known: _Leaves, steps: int = _MAX_STEPS
    ) -> tuple[tuple[_Value, ...], float]:
        """The values from which a kernel has a value with the fewest bytes, and those: the value itself, or what its inputs are computed from."""
        if value not in known:
            stored = value.needed or value.users or value.kernel < 0
            size = 0.0 if value.kernel == kernel or kernel in value.users else value.num_bytes * (1 if stored else 2)
            known[value] = (value,), size
            if value.inputs and size and steps:
                leaves, again = self._sources(kernel, value, known, steps)
                if len(leaves) <= _MAX_LEAVES and again < size:
                    known[value] = leaves, again
        return known[value]

    def _sources(
        self, kernel: int, value: _Value, known: _Leaves, steps: int = _MAX_STEPS
    ) -> tuple[tuple[_Value, ...], float]:
        """The values from which a kernel computes a value, and the bytes that it moves for them."""
        leaves = dict.fromkeys(leaf for one in value.inputs for leaf in self._leaves(kernel, one, known, steps - 1)[0])
        return tuple(leaves), sum(self._leaves(kernel, leaf, known, 0)[1] for leaf in leaves)

    def _elementwise(self, aval: Any, operands: list[_Value], name: str) -> _Value:
        elements = math.prod(aval.shape)
        large = [one for one in operands if not one.free and one.elements > _SMALL * elements]
        if not large:  # from constants and small arrays
            needs = frozenset().union(*(one.kernels for one in operands))
            mixed = max((one.mixed for one in operands), default=0) + (name in _INTEGER)
            return self._value(aval, free=True, needs=needs, mixed=mixed)
        home = self._home(large, operands, elements)
        if home < 0:
            home = self._begin(name, elements)
        for one in operands:
            self._read(home, one)
        self.kernels[home].costly += elements * (name in _TRANSCENDENTAL)
        return self._value(aval, kernel=home, inputs=tuple(one for one in operands if not one.free))

    def _home(self, large: Sequence[_Value], operands: Sequence[_Value], elements: int) -> int:
        """The kernel that takes an operation: the last that produces a large operand, or one that reads one too; or -1."""
        producers = {one.kernel for one in large} - {-1}
        readers = {user for one in large for user in one.users if not self.kernels[user].products}
        for kernel in (*sorted(producers, reverse=True), *sorted(readers - producers, reverse=True)):
            if not self.kernels[kernel].is_custom and self._may_join(kernel, operands, elements):
                return kernel
        return -1

    def _reduce(self, aval: Any, operand: _Value, name: str) -> _Value:
        if operand.free:
            return self._value(aval, free=True, needs=operand.needs)
        home = self._home([operand], [operand], operand.elements)
        if home < 0:
            home = self._begin(name, operand.elements)
        self._read(home, operand)
        return self._value(aval, kernel=home, needs=frozenset({home}))

    def _product(self, equation: JaxprEqn, operands: list[_Value]) -> _Value:
        aval = array(equation.outvars[0])
        home = self._begin(equation.primitive.name, math.prod(aval.shape))
        for one, operand in zip(operands, equation.invars, strict=True):
            if item_bytes(array(operand)) == 1:
                one.inputs = ()  # XLA quantizes in a kernel before the product
            self._read(home, one)
        self.kernels[home].products.append(product_of(equation))
        return self._value(aval, kernel=home)

    def _alone(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """A kernel of its own, which reads as much of its first operand as it returns or updates."""
        name = equation.primitive.name
        results = [array(var) for var in equation.outvars]
        home = self._begin(name, max((math.prod(aval.shape) for aval in results), default=0))
        kernel = self.kernels[home]
        first = (
            operands[0]
            if name in ("gather", "dynamic_slice") or name.startswith(("scatter", "dynamic_update"))
            else None
        )
        for one in operands:
            if one is not first:
                self._read(home, one)
        if first is None:
            return [self._value(aval, kernel=home, needs=frozenset({home})) for aval in results]
        if not first.free and first.kernel >= 0:
            first.needed = True
        if name in ("gather", "dynamic_slice"):
            kernel.arrays.append(padded_bytes(results[0]))
            kernel.elements += math.prod(results[0].shape)
            return [self._value(results[0], kernel=home, needs=frozenset({home}))]
        updates = padded_bytes(array(equation.invars[2 if name.startswith("scatter") else 1]))
        kernel.arrays += [updates] * (2 if name.startswith("scatter") else 1)
        value = self._value(results[0], kernel=home, needs=frozenset({home}))
        value.num_bytes = 0.0 if not first.free else value.num_bytes  # in place; an array of zeros is written first
        return [value]

    def _scan(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """A loop: its operands and results are in memory; each iteration reads and writes slices."""
        params = equation.params
        jaxpr, length = params["jaxpr"].jaxpr, params["length"]
        home = self._begin("scan", 0)
        for one in operands:
            if not one.free:
                one.needed = one.needed or one.kernel >= 0
        body = _Body(self.times * length, self.parts)
        inputs = [body.stored(array(var)) for var in (*jaxpr.constvars, *jaxpr.invars)]
        results = body.run(jaxpr, inputs)
        carried = params["num_carry"]
        for number, value in enumerate(results):
            value.needed = True
            is_copy = value.kernel < 0 or value in results[:carried] or not (value.kept or params["reverse"])
            is_stacked = number >= carried
            if is_stacked and is_copy and not value.free:
                body.kernels.append(
                    Kernel(body.times / body.parts, "copy", elements=2 * value.elements, arrays=[value.num_bytes] * 2)
                )
                body.spaces.append(value.elements)
        self.inner += [dataclasses.replace(kernel, is_looped=True) for kernel in body.finish()]
        return [self._value(array(var), needs=frozenset({home})) for var in equation.outvars]  # written by the body

    def _unrolled(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """An unrolled loop: a program in which each iteration uses the values of the others. Its stacks are written only for other operations."""
        params = equation.params
        jaxpr, length, fixed = params["jaxpr"].jaxpr, params["length"], params["num_consts"]
        first = fixed + params["num_carry"]
        constants = [self.stored(array(var)) for var in jaxpr.constvars]
        shared, carried, stacks = (
            operands[:fixed],
            operands[fixed:first],
            [self._slices(one, length) for one in operands[first:]],
        )
        made: list[list[_Value]] = [[]] * length
        for number in reversed(range(length)) if params["reverse"] else range(length):
            inputs = [*constants, *shared, *carried, *(parts[number] for parts in stacks)]
            results = self.run(jaxpr, inputs)
            carried, made[number] = results[: params["num_carry"]], results[params["num_carry"] :]
        avals = [array(var) for var in equation.outvars[params["num_carry"] :]]
        whole = [self._value(aval, parts=parts) for aval, parts in zip(avals, zip(*made, strict=True), strict=True)]
        return [*carried, *whole]

    def _slices(self, one: _Value, length: int) -> tuple[_Value, ...]:
        """The parts of a stacked value."""
        if one.parts:
            return one.parts
        if one.kernel >= 0:
            one.needed = True
        parts = tuple(
            _Value(one.elements // length, one.num_bytes / length, needs=one.kernels, free=one.free)
            for _ in range(length)
        )
        self.values += parts
        return parts

    def whole(self, one: _Value) -> _Value:
        """A value that other operations than loops use: parts are copied into their stack."""
        if one.parts:
            for part in one.parts:
                self._copy(part)
            one.needs = frozenset().union(*(part.kernels for part in one.parts))
            one.parts = ()
        return one

    def _copy(self, part: _Value) -> None:
        home = self._begin("copy", part.elements)
        self._read(home, part)
        kernel = self.kernels[home]
        kernel.arrays.append(part.num_bytes)
        kernel.elements += part.elements

    def _custom(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        home = self._begin("pallas_call", max(math.prod(array(var).shape) for var in equation.outvars))
        kernel = self.kernels[home]
        kernel.is_custom = True
        for one in operands:
            self._read(home, one)
        declared = equation.params["cost_estimate"]
        if declared is not None:
            item = max(item_bytes(array(var)) for var in equation.outvars)
            kernel.products.append(Product(1, 8, declared.flops // 16, 1, item))  # of whole registers
            return [self._value(array(var), kernel=home, needs=frozenset({home})) for var in equation.outvars]
        grid = math.prod(side for side in equation.params["grid_mapping"].grid if isinstance(side, int))
        kernel.products += [
            dataclasses.replace(one, batch=one.batch * grid) for one in products_in(equation.params["jaxpr"])
        ]
        return [self._value(array(var), kernel=home, needs=frozenset({home})) for var in equation.outvars]

    def finish(self) -> list[Kernel]:
        """Add the traffic between kernels."""
        self._recompute()
        self._remove_unused()
        for value in self.values:
            if value.free and value.needed and value.num_bytes:
                fill = Kernel(self.times / self.parts, "fill", elements=value.elements, arrays=[value.num_bytes])
                self.kernels.append(fill)
            size = value.num_bytes if value.needed or value.kernel < 0 else -value.num_bytes
            writers = [value.kernel] if value.kernel >= 0 and (value.users or value.needed) else []
            for number in (*sorted(value.users), *writers):
                self.kernels[number].arrays.append(size)
                self.kernels[number].elements += value.elements
        kept = [
            one for n, one in enumerate(self.kernels) if n not in self.removed and (one.products or any(one.arrays))
        ]
        return kept + self.inner

    def _recompute(self) -> None:
        """Compute values again in the kernels that read them, where that moves no more bytes than to compute, write and read them."""
        written, reads = collections.Counter[int](), collections.defaultdict[int, float](float)
        for value in self.values:
            written[value.kernel] += bool(value.users or value.needed)
            for user in value.users:
                reads[user] += value.num_bytes
        for value in self.values:
            if not value.inputs or value.needed or not value.users:
                continue
            users, value.users = value.users, set()
            found = [(user, *self._sources(user, value, {})) for user in users]
            stored = value.num_bytes * (1 + len(users))
            if written[value.kernel] == 1 and not self.kernels[value.kernel].products:
                stored += reads[value.kernel]  # nothing else needs the kernel
            if any(len(leaves) > _MAX_LEAVES for _, leaves, _ in found) or sum(size for _, _, size in found) > stored:
                value.users = users
                continue
            written[value.kernel] -= 1
            for user, leaves, size in found:
                reads[user] += size - value.num_bytes
                for leaf in leaves:
                    if leaf.kernel != user:
                        leaf.users.add(user)

    def _remove_unused(self) -> None:
        """Remove the kernels of which nothing is read: those whose values are computed again elsewhere, or that nothing needs."""
        while True:
            written = {one.kernel for one in self.values if one.users or one.needed}
            moving = (n for n, kernel in enumerate(self.kernels) if kernel.arrays)  # gathers, scatters and copies
            unused = set(range(len(self.kernels))) - written - set(moving) - self.removed
            if not unused:
                return
            self.removed |= unused
            for value in self.values:
                value.users -= unused


def _live(jaxpr: Jaxpr) -> list[bool]:
    """Whether each equation contributes to a result."""
    needed = {var for var in jaxpr.outvars if isinstance(var, Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        used = bool(equation.effects) or any(var in needed for var in equation.outvars)
        live.append(used)
        if used:
            needed.update(var for var in equation.invars if isinstance(var, Var))
    return live[::-1]

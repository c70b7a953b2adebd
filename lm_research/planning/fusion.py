"""Kernels of a traced program: what a compiler that fuses elementwise operations would run, with its products and memory traffic.

XLA fuses elementwise operations and reductions with the operation that produces their input, so an intermediate value passes through
memory only if another kernel needs it (Snider and Liang 2023, "Operator Fusion in XLA"). `kernels` applies this to a jaxpr:

- a matrix product, a gather, a sort or a Pallas call begins a kernel;
- an elementwise operation joins the kernel that produces its large operands (the last one, if there are several);
- a reduction joins the kernel of its operand, but its result is known only after the whole kernel: what depends on it begins another;
- values computed from small arrays (masks, random bits, broadcasts of vectors) are computed again wherever they are needed;
- a kernel reads each operand from outside once, and writes what other kernels or the result of the program need;
- a loop's body is a program whose operands and results are in memory, times the number of iterations; what an iteration keeps for the
  backward pass is copied into stacks, except for what jax.checkpoint keeps, which its kernels write there, and unless the loop is unrolled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


@dataclasses.dataclass(frozen=True)
class Product:
    """A batch of matrix products [rows, inner] x [inner, columns] of elements of `item` bytes."""

    batch: int
    rows: int
    inner: int
    columns: int
    item: int

    @property
    def flops(self) -> float:
        """A multiplication and an addition for each element of the cube."""
        return 2.0 * self.batch * self.rows * self.inner * self.columns

    @property
    def elements(self) -> float:
        """Elements of the operands and of the result."""
        return self.batch * (self.rows * self.inner + self.inner * self.columns + self.rows * self.columns)


@dataclasses.dataclass
class Kernel:
    """A kernel that runs `times` in a step.

    Attributes:
      times: number of runs; a fraction of one for a kernel that several devices share.
      name: the operation that began it.
      products: its matrix products.
      elements: elements of the arrays that a run reads or writes.
      arrays: bytes of the arrays that a run reads from memory or writes to it, negative for those that exist only between two kernels
        of a computation, which small ones pass on the chip.
      is_custom: whether it is a Pallas kernel, whose products are those of its whole grid.
    """

    times: float
    name: str
    products: list[Product] = dataclasses.field(default_factory=list)
    elements: float = 0.0
    arrays: list[float] = dataclasses.field(default_factory=list)
    is_custom: bool = False

    @property
    def flops(self) -> float:
        """Operations of the products of a run."""
        return sum(product.flops for product in self.products)


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
# A value with at most this fraction of an operation's elements is read where it is needed, and attracts nothing.
_SMALL = 0.2
# Number of values from which one is computed again at most.
_MAX_ROOTS = 6


@dataclasses.dataclass(eq=False)
class _Value:
    """A value of the program.

    Attributes:
      elements, num_bytes: size.
      kernel: number of the kernel that produces it; -1 if it is in memory from the start.
      needs: kernels that must end before it is known: its own, of a reduction, and those of the values that a free one is computed from.
      free: whether it is computed anew in each kernel that needs it.
      roots: values from which elementwise operations compute this one; empty if it is one itself.
      needed: whether the result of the computation has it, or a loop reads it.
      users: other kernels that read it.
      kept: whether jax.checkpoint keeps it, which marks it with reduce_precision.
    """

    elements: int
    num_bytes: float
    kernel: int = -1
    needs: frozenset[int] = frozenset()
    free: bool = False
    roots: tuple[_Value, ...] = ()
    needed: bool = False
    users: set[int] = dataclasses.field(default_factory=set)
    kept: bool = False

    @property
    def kernels(self) -> frozenset[int]:
        """The kernels that it depends on directly."""
        return self.needs if self.kernel < 0 else self.needs | {self.kernel}


def kernels(program: ClosedJaxpr, parts: int = 1) -> list[Kernel]:
    """List the kernels of a program, in order, with those of its loops.

    Args:
      program: the program.
      parts: number of devices that share what is outside of jax.shard_map, whose inside is that of one device.
    """
    jaxpr = program.jaxpr
    body = _Body(1.0, parts)
    inputs = [body.stored(_array(var)) for var in (*jaxpr.constvars, *jaxpr.invars)]
    for value in body.run(jaxpr, inputs):
        value.needed = True
    return body.finish()


def extrapolate(
    few: Sequence[Kernel], many: Sequence[Kernel], traced: tuple[int, int], rows: int
) -> list[Kernel] | None:
    """Return the kernels for any number of sequences from those for two numbers, since all sizes are linear in it.

    None if the two programs differ in more than sizes.

    Args:
      few: kernels for the smaller number.
      many: kernels for the larger number.
      traced: the two numbers.
      rows: the number that the result is for.
    """
    if [(one.name, len(one.arrays)) for one in few] != [(one.name, len(one.arrays)) for one in many]:
        return None
    way = (rows - traced[0]) / (traced[1] - traced[0])

    def at(small: float, large: float) -> float:
        return small + (large - small) * way

    found = []
    for small, large in zip(few, many, strict=True):
        arrays = [at(*pair) for pair in zip(small.arrays, large.arrays, strict=True)]
        products = [
            Product(
                *(round(at(a, b)) for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True))
            )
            for one, other in zip(small.products, large.products, strict=True)
        ]
        found.append(
            dataclasses.replace(
                small,
                times=at(small.times, large.times),
                elements=at(small.elements, large.elements),
                products=products,
                arrays=arrays,
            )
        )
    return found


class _Body:
    """The kernels of one computation: a program, or the body of a loop."""

    def __init__(self, times: float, parts: int) -> None:
        self.times, self.parts = times, parts
        self.kernels: list[Kernel] = []
        self.spaces: list[int] = []  # elements that a kernel iterates over
        self.before: list[set[int]] = []  # kernels that a kernel needs directly
        self.values: list[_Value] = []
        self.inner: list[Kernel] = []

    def stored(self, aval: Any) -> _Value:
        """A value in memory."""
        return self._value(aval)

    def _value(self, aval: Any, **fields: Any) -> _Value:
        value = _Value(math.prod(aval.shape), _size(aval), **fields)
        self.values.append(value)
        return value

    def run(self, jaxpr: Jaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Place the operations of a jaxpr in kernels, and return its results."""
        found: dict[Var, _Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
        live = _live(jaxpr)

        def read(atom: Any) -> _Value:
            return self._value(_array(atom), free=True) if isinstance(atom, Literal) else found[atom]

        for equation, used in zip(jaxpr.eqns, live, strict=True):
            if used:
                results = self._place(equation, [read(atom) for atom in equation.invars])
                found.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _place(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        name, params = equation.primitive.name, equation.params
        avals = [_array(var) for var in equation.outvars]
        if name in _ALIASES and len(operands) == len(avals):
            for one in operands:
                one.kept = one.kept or name == "reduce_precision"
            return operands
        if name in _ALIASES:
            return operands[:1]
        if name == "pallas_call":
            return self._custom(equation, operands)
        if name == "scan":
            return self._scan(equation, operands)
        if name == "cond":
            branch = max(params["branches"], key=lambda one: len(one.jaxpr.eqns))
            return self.run(branch.jaxpr, [self.stored(_array(v)) for v in branch.jaxpr.constvars] + operands[1:])
        inner = _called(params) if name in _CALLS else None
        if inner is not None:
            jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            outside, self.parts = self.parts, 1 if name == "shard_map" else self.parts
            results = self.run(jaxpr, [self.stored(_array(var)) for var in jaxpr.constvars] + operands)
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
        """Make a value available inside a kernel: compute it again from its roots if that moves fewer bytes than reading it."""
        self.before[kernel] |= value.kernels - {kernel}
        if not value.free and value.kernel != kernel:
            outside = [one for one in value.roots if one.kernel != kernel and kernel not in one.users]
            stored = value.needed or value.users or value.kernel < 0
            whole = value.num_bytes * (1 if stored else 2) * (kernel not in value.users)
            again = sum(one.num_bytes * (1 if one.needed or one.users or one.kernel < 0 else 2) for one in outside)
            if value.roots and again <= whole:
                for one in outside:
                    one.users.add(kernel)
            else:
                value.users.add(kernel)

    def _elementwise(self, aval: Any, operands: list[_Value], name: str) -> _Value:
        elements = math.prod(aval.shape)
        large = [one for one in operands if not one.free and one.elements > _SMALL * elements]
        if not large:  # from constants and small arrays
            needs = frozenset().union(*(one.kernels for one in operands))
            return self._value(aval, free=True, needs=needs)
        home = self._home(large, operands, elements)
        if home < 0:
            home = self._begin(name, elements)
        for one in operands:
            self._read(home, one)
        roots = dict.fromkeys(root for one in operands if not one.free for root in one.roots or (one,))
        return self._value(aval, kernel=home, roots=tuple(roots) if len(roots) <= _MAX_ROOTS else ())

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
        aval = _array(equation.outvars[0])
        home = self._begin(equation.primitive.name, math.prod(aval.shape))
        for one in operands:
            self._read(home, one)
        self.kernels[home].products.append(product_of(equation))
        return self._value(aval, kernel=home)

    def _alone(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """A kernel of its own, which reads as much of its first operand as it returns or updates."""
        name = equation.primitive.name
        results = [_array(var) for var in equation.outvars]
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
            kernel.arrays.append(_size(results[0]))
            kernel.elements += math.prod(results[0].shape)
            return [self._value(results[0], kernel=home, needs=frozenset({home}))]
        updates = _size(_array(equation.invars[2 if name.startswith("scatter") else 1]))
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
        inputs = [body.stored(_array(var)) for var in (*jaxpr.constvars, *jaxpr.invars)]
        results = body.run(jaxpr, inputs)
        carried = params["num_carry"]
        for number, value in enumerate(results):
            value.needed = True
            is_copy = value.kernel < 0 or value in results[:carried] or not (value.kept or params["reverse"])
            is_stacked = number >= carried and params["unroll"] < length
            if is_stacked and is_copy and not value.free:
                body.kernels.append(
                    Kernel(body.times / body.parts, "copy", elements=2 * value.elements, arrays=[value.num_bytes] * 2)
                )
                body.spaces.append(value.elements)
        self.inner += body.finish()
        return [self._value(_array(var), needs=frozenset({home})) for var in equation.outvars]  # written by the body

    def _custom(self, equation: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        home = self._begin("pallas_call", max(math.prod(_array(var).shape) for var in equation.outvars))
        kernel = self.kernels[home]
        kernel.is_custom = True
        for one in operands:
            self._read(home, one)
        declared = equation.params["cost_estimate"]
        if declared is not None:
            item = max(_item(_array(var)) for var in equation.outvars)
            kernel.products.append(Product(1, 8, declared.flops // 16, 1, item))  # of whole registers
            return [self._value(_array(var), kernel=home, needs=frozenset({home})) for var in equation.outvars]
        grid = math.prod(side for side in equation.params["grid_mapping"].grid if isinstance(side, int))
        kernel.products += [
            dataclasses.replace(one, batch=one.batch * grid) for one in _products(equation.params["jaxpr"])
        ]
        return [self._value(_array(var), kernel=home, needs=frozenset({home})) for var in equation.outvars]

    def finish(self) -> list[Kernel]:
        """Add the traffic between kernels."""
        for value in self.values:
            if value.free and value.needed and value.num_bytes:
                fill = Kernel(self.times / self.parts, "fill", elements=value.elements, arrays=[value.num_bytes])
                self.kernels.append(fill)
            size = value.num_bytes if value.needed or value.kernel < 0 else -value.num_bytes
            writers = [value.kernel] if value.kernel >= 0 and (value.users or value.needed) else []
            for number in (*sorted(value.users), *writers):
                self.kernels[number].arrays.append(size)
                self.kernels[number].elements += value.elements
        moving = [one for one in self.kernels if one.products or any(one.arrays)]
        return moving + self.inner


def product_of(equation: JaxprEqn) -> Product:
    """The sizes of a matrix product or a convolution."""
    left, right, out = (_array(var) for var in (*equation.invars[:2], equation.outvars[0]))
    item = max(_item(left), _item(right))
    if equation.primitive.name == "dot_general":
        (contract, _), (batch, right_batch) = equation.params["dimension_numbers"]
        inner = math.prod(left.shape[axis] for axis in contract)
        groups = math.prod(left.shape[axis] for axis in batch)
        rows = math.prod(left.shape) // max(1, inner * groups)
        columns = math.prod(right.shape) // max(1, inner * groups)
        return Product(groups, rows, inner, columns, item)
    if equation.primitive.name.startswith("ragged"):
        rows, columns = out.shape[-2:]
        return Product(1, rows, math.prod(left.shape) // max(1, rows), columns, item)
    inner = math.prod(right.shape) // max(1, out.shape[equation.params["dimension_numbers"].out_spec[1]])
    columns = out.shape[equation.params["dimension_numbers"].out_spec[1]]
    return Product(1, math.prod(out.shape) // max(1, columns), inner, columns, item)


def _products(jaxpr: Any) -> Iterator[Product]:
    """The products in a Pallas kernel, of one point of its grid."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for equation in inner.eqns:
        if equation.primitive.name == "dot_general":
            yield product_of(equation)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for part in _parts(equation.params):
            for one in _products(part):
                yield dataclasses.replace(one, batch=one.batch * times)


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (Jaxpr, ClosedJaxpr)):
                yield one


def _called(params: dict[str, Any]) -> Jaxpr | ClosedJaxpr | None:
    return next(_parts(params), None)


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


def _array(atom: Any) -> Any:
    """The shape and type of a value, which is an array."""
    return atom.aval


def _item(aval: Any) -> int:
    try:
        return np.dtype(aval.dtype).itemsize
    except TypeError:  # keys
        return 8


def _size(aval: Any) -> float:
    return _padded(aval.shape) * _item(aval)


def _padded(shape: Sequence[int]) -> int:
    """Elements of an array in memory, in tiles of 8 x 128 over the two dimensions that waste least."""
    if math.prod(shape) < 1024 or not shape:
        return math.prod(shape)
    lanes = min(-(-side // 128) * 128 / side for side in shape)
    return math.ceil(math.prod(shape) * lanes)

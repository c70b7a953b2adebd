"""Matrix products and kernels of a traced program, with their sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


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
    def operands(self) -> float:
        """Elements of the operands."""
        return self.batch * self.inner * (self.rows + self.columns)


@dataclasses.dataclass
class Kernel:
    """A kernel that runs `times` in a step.

    Attributes:
      times: number of runs; a fraction of one for a kernel that several devices share.
      name: the operation that began it.
      products: its matrix products.
      elements: elements of the arrays that a run reads or writes.
      costly: elements of transcendental functions and of random bits that it computes.
      arrays: bytes of the arrays that a run reads from memory or writes to it, negative for those that exist only between two kernels
        of a computation, which small ones pass on the chip.
      is_custom: whether it is a Pallas kernel, whose products are those of its whole grid.
      is_looped: whether it is in a loop, which is not unrolled.
    """

    times: float
    name: str
    products: list[Product] = dataclasses.field(default_factory=list)
    elements: float = 0.0
    costly: float = 0.0
    arrays: list[float] = dataclasses.field(default_factory=list)
    is_custom: bool = False
    is_looped: bool = False

    @property
    def flops(self) -> float:
        """Operations of the products of a run."""
        return sum(product.flops for product in self.products)


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
                costly=at(small.costly, large.costly),
                products=products,
                arrays=arrays,
            )
        )
    return found


def product_of(equation: JaxprEqn) -> Product:
    """The sizes of a matrix product or a convolution."""
    left, right, out = (array(var) for var in (*equation.invars[:2], equation.outvars[0]))
    item = max(item_bytes(left), item_bytes(right))
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


def products_in(jaxpr: Any) -> Iterator[Product]:
    """The products in a Pallas kernel, of one point of its grid."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for equation in inner.eqns:
        if equation.primitive.name == "dot_general":
            yield product_of(equation)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for part in parts_of(equation.params):
            for one in products_in(part):
                yield dataclasses.replace(one, batch=one.batch * times)


def parts_of(params: dict[str, Any]) -> Iterator[Any]:
    """List the jaxprs among the parameters of an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (Jaxpr, ClosedJaxpr)):
                yield one


def called(params: dict[str, Any]) -> Jaxpr | ClosedJaxpr | None:
    """Return the first jaxpr among the parameters of an equation, or None."""
    return next(parts_of(params), None)


def array(atom: Any) -> Any:
    """The shape and type of a value, which is an array."""
    return atom.aval


def item_bytes(aval: Any) -> int:
    """Return the bytes of an element."""
    try:
        return np.dtype(aval.dtype).itemsize
    except TypeError:  # keys
        return 8


def padded_bytes(aval: Any) -> float:
    """Return the bytes of an array in memory."""
    return _padded(aval.shape) * item_bytes(aval)


def _padded(shape: Sequence[int]) -> int:
    """Elements of an array in memory, in tiles of 8 x 128 over the two dimensions that waste least."""
    if math.prod(shape) < 1024 or not shape:
        return math.prod(shape)
    lanes = min(-(-side // 128) * 128 / side for side in shape)
    return math.ceil(math.prod(shape) * lanes)

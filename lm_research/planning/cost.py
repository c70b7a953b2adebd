"""Operations and memory traffic of single instructions of an optimized HLO module."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from lm_research.planning.program import HBM, Array, Computation, Instruction, Program

# Instructions that move nothing themselves.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier while conditional call "
    "copy-done async-done async-update add-dependency domain".split()
)
# Instructions that a fusion evaluates only where their result is used.
_VIEWS = ("bitcast", "copy", "convert", "reshape", "transpose")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-")
# Instructions that read only as much of their first operand as they return.
_SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls that move nothing.
_FREE_CALLS = frozenset(
    "AllocateBuffer ConcatBitcast AssumeGatherIndicesInBound GatherScatterIndicesBitpacked AsyncCollectiveStart AsyncCollectiveDone".split()
)
# Products in float32 take several bfloat16 products, by operand_precision.
_PASSES = {"highest": 6, "high": 3}


def products(program: Program, computation: Computation, one: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """List the matrix products of an instruction: itself, or those inside a fusion."""
    if one.opcode in ("dot", "convolution"):
        yield computation, one
    inner = program.called(one)
    if inner is not None and one.opcode != "custom-call":
        for part in inner.instructions.values():
            yield from products(program, inner, part)


def flops(computation: Computation, product: Instruction) -> float:
    """Return the floating-point operations of a dot or a convolution: two per multiplication and addition.

    Of a convolution, only taps that meet elements of the input count, not those in padding or between dilated elements: XLA writes
    products with batch dimensions as convolutions that are mostly padding.
    """
    left, right = (computation.instructions[name].arrays[0] for name in product.operands)
    if product.opcode == "dot":
        contracted = _numbers(product.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
        return 2.0 * product.arrays[0].elements * math.prod(left.dims[axis] for axis in contracted)
    return 2.0 * _convolution(product, left, right)


def passes(product: Instruction) -> int:
    """Return the number of bfloat16 products that a product takes, by its precision."""
    precision = product.attribute(r"operand_precision=\{(\w+)")
    return _PASSES.get(precision or "", 1)


def is_8bit(computation: Computation, product: Instruction) -> bool:
    """Return whether the operands of a product have 8 bits."""
    return all(computation.instructions[name].arrays[0].bits == 8 for name in product.operands)


def _convolution(one: Instruction, left: Array, right: Array) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels, f"a convolution has dim_labels: {one.name}"
    inputs = labels[1]
    groups = int(one.attribute(r"feature_group_count=(\d+)") or 1)
    batches = int(one.attribute(r"batch_group_count=(\d+)") or 1)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", one.attribute(r"window=\{([^}]*)\}") or ""))
    spatial = [str(n) for n in range(len(inputs) - 2)]
    taps = 1.0
    for n, label in enumerate(spatial):
        sides = {key: value.split("x")[n] for key, value in window.items() if key != "rhs_reversal"}
        low = int(sides.get("pad", "0_0").partition("_")[0])
        taps *= _taps(
            left.dims[inputs.index(label)],
            right.dims[labels[2].index(label)],
            one.arrays[0].dims[labels[3].index(label)],
            int(sides.get("stride", 1)),
            low,
            int(sides.get("lhs_dilate", 1)),
            int(sides.get("rhs_dilate", 1)),
        )
    features = left.dims[inputs.index("f")] // groups * right.dims[labels[2].index("o")]
    return taps * features * (left.dims[inputs.index("b")] // batches)


@functools.cache
def _taps(size: int, kernel: int, out: int, stride: int, low: int, dilation: int, spread: int) -> int:
    """Count the pairs of an output position and a tap that meet an element of the input, in one dimension."""
    starts = np.arange(out) * stride - low
    total = 0
    for tap in range(kernel):
        at = starts + tap * spread
        total += int(np.count_nonzero((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)))
    return total


def hbm_bytes(program: Program, computation: Computation, one: Instruction) -> float:
    """Return the bytes that an instruction reads from HBM and writes to it, padding included.

    A fusion reads its operands and writes its results, its inner values pass through no memory. An operand of which only slices are used
    counts as those slices; an array that is updated in place, as the update, which a scatter reads there too, to add to it.
    """
    if one.opcode in FREE or one.opcode.endswith("-done") or is_free_call(one):
        return 0.0
    if one.opcode == "copy-start":  # the result is (destination, source, semaphore)
        return _in_hbm(one.arrays[:2])
    if one.opcode == "slice-start":  # ((source), destination, semaphore)
        return one.arrays[1].padded_bytes * sum(array.space == HBM for array in one.arrays[:2])
    if one.opcode in _SLICES:
        return one.arrays[0].padded_bytes * (_space(computation, one) == HBM) + _in_hbm(one.arrays)
    if one.opcode == "dynamic-update-slice":
        return 2 * _update(computation, one).padded_bytes * (one.arrays[0].space == HBM)
    if one.opcode == "scatter":
        return 3 * _update(computation, one).padded_bytes * (one.arrays[0].space == HBM)
    inner = program.called(one) if one.opcode in ("fusion", "async-start") else None
    if inner is None:
        return sum(_in_hbm(operand.arrays) for operand in computation.operands(one)) + _in_hbm(one.arrays)
    read = 0.0
    for number, operand in enumerate(computation.operands(one)):
        if number in inner.parameters and len(operand.arrays) == 1 and operand.arrays[0].space == HBM:
            read += min(1.0, _share(program, ((inner, inner.parameters[number]),))) * operand.arrays[0].padded_bytes
    return read + _written(program, inner, inner.root)


def _share(program: Program, path: tuple[tuple[Computation, Instruction], ...]) -> float:
    """The share of its elements that a fusion reads of a value; `path` has the value, and the fusions around it."""
    inner, value = path[-1]
    share = 0.0
    if value.root and len(path) > 1:
        share += _share(program, path[:-1])
    for user in inner.users.get(value.name, ()):
        first = user.operands[0] == value.name
        if user.opcode in _SLICES and first:
            share += user.arrays[0].elements / max(1, value.arrays[0].elements)
        elif user.opcode == "scatter" and first:
            share += _update(inner, user).elements / max(1, value.arrays[0].elements)
        elif user.opcode in _VIEWS:
            share += _share(program, (*path[:-1], (inner, user)))
        elif user.opcode == "fusion" and (callee := program.called(user)):
            begin = callee.parameters[user.operands.index(value.name)]
            share += _share(program, (*path[:-1], (inner, user), (callee, begin)))
        elif not (user.opcode == "dynamic-update-slice" and first) and not _passes_on(user):
            return 1.0
    return share


def _passes_on(one: Instruction) -> bool:
    """Whether an instruction in a fusion only names its operands: a tuple, or a collective that runs on while the fusion computes."""
    return one.opcode in ("tuple", "custom-call") or one.opcode.startswith(_COLLECTIVES)


def _written(program: Program, inner: Computation, root: Instruction) -> float:
    """Bytes that a fusion writes to HBM; operands that it returns, and arrays of collectives that it overlaps, are not written by it."""
    if root.opcode == "tuple":
        return sum(_written(program, inner, one) for one in inner.operands(root))
    source = root
    while source.opcode == "bitcast" and source.operands[0] in inner.instructions:
        source = inner.instructions[source.operands[0]]
    callee = program.called(source) if source.opcode == "fusion" else None
    if callee is not None and len(source.arrays) == 1:
        return min(_written(program, callee, callee.root), _in_hbm(root.arrays))
    if source.opcode in ("dynamic-update-slice", "scatter"):
        return _update(inner, source).padded_bytes * (root.arrays[0].space == HBM)
    passed = source.opcode in ("parameter", "get-tuple-element") or _passes_on(source)
    return 0.0 if passed else _in_hbm(root.arrays)


def _update(computation: Computation, one: Instruction) -> Array:
    """What a dynamic-update-slice(array, update, indices...) or a scatter(array, indices, update) of one array writes."""
    return computation.instructions[one.operands[2 if one.opcode == "scatter" else 1]].arrays[0]


def _space(computation: Computation, one: Instruction) -> int:
    source = computation.instructions.get(one.operands[0])
    return source.arrays[0].space if source and source.arrays else HBM


def _in_hbm(found: tuple[Array, ...]) -> float:
    return float(sum(one.padded_bytes for one in found if one.space == HBM))


def _numbers(text: str | None) -> list[int]:
    return [int(one) for one in (text or "").split(",") if one]


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Cost of a Pallas kernel, `declared` by pallas_call's cost_estimate, or else unknown and 0."""

    name: str
    flops: float
    hbm_bytes: float
    declared: bool


def kernel(computation: Computation, one: Instruction) -> KernelCost | None:
    """Return the cost of a Pallas kernel, or None for other instructions."""
    if one.opcode != "custom-call" or 'custom_call_target="tpu_custom_call"' not in one.attributes:
        return None
    name = one.attribute(r'"?kernel_name"?[=:] ?"([\w.\-]+)"') or one.name.rstrip("0123456789.")
    declared = one.attribute(r'"cost_estimate": ?\{([^}]*)\}')
    if declared:
        numbers = {key: float(value) for key, value in re.findall(r'"(\w+)": ?"?(\d+)', declared)}
        return KernelCost(name, numbers.get("flops", 0.0), numbers.get("bytes_accessed", 0.0), True)
    return KernelCost(name, 0.0, 0.0, False)


def is_free_call(one: Instruction) -> bool:
    """Return whether an instruction is a custom call that only reserves or renames memory."""
    target = one.attribute(r'custom_call_target="(\w+)"') if one.opcode == "custom-call" else None
    return target in _FREE_CALLS

"""Rates that compiled programs reach on a chip (parallel/hardware.py has those of its data sheet)."""

from __future__ import annotations

import bisect
import dataclasses
import math

from lm_research.parallel.hardware import Chip
from lm_research.planning.kernels import Kernel, Product


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What programs reach on a kind of chip.

    Attributes:
      tile: side of the matrix unit; the contraction and the columns of a product are padded to multiples.
      products: (contraction, fraction of the peak) of bfloat16 products that fill their tiles, by increasing contraction; a fraction holds
        from its contraction on.
      wide: fraction of the peak of products all of whose sides are at least WIDE, whose operands the chip's own memory does not hold.
      memory: fraction of the bandwidth of memory.
      elements: elements of arrays that kernels without products read or write per second of a chip.
      costly: elements of arrays that one of a transcendental function, or of random bits, counts as.
      cache: bytes of an array that stays on the chip between two kernels.
      attention: fraction of the peak in Pallas kernels.
      start: seconds until a kernel computes; a kernel with products, which fill the matrix unit first, takes two of them.
      hop: seconds of latency of a collective per link that it crosses.
      asynchronous: kinds of collectives that run while the chip computes.
    """

    tile: int
    products: tuple[tuple[int, float], ...]
    memory: float
    elements: float
    cache: float
    attention: float = 0.35
    start: float = 0.0
    costly: float = 0.0
    wide: float = 1.0
    hop: float = 1e-6
    asynchronous: tuple[str, ...] = ()


# From the cycles that the compiler of libtpu 0.0.52 estimates: for single operations (python -m experiments.plans.efficiencies), and on v5e for
# products and elementwise kernels in the compiled steps of experiments/plans/compared.tsv. The cache is a sixth of the vector memory of 128 MiB,
# the rest of which holds the operands of the running kernel and of the next. MaxText's 16B model on a v5e pod has 61.1% MFU (README of
# AI-Hypercomputer/maxtext, configs/v5e/16b.sh); the prediction is 60.1%. Collectives are asynchronous in fusions with
# products, which the compiler has for v5e only (parallel/compiler_options.py): programs for other TPUs wait for all of them.
START = 1.2e-6
WIDE = 4096
_BY_SHARD = ("all-gather", "reduce-scatter")
_V5E = ((0, 0.70), (768, 0.89), (1024, 0.94), (3072, 0.955))
_V5P = ((0, 0.70), (768, 0.78), (1024, 0.83), (3072, 0.86))
_V6E = ((0, 0.70), (768, 0.85), (1024, 0.88), (3072, 0.90))
_TPU7X = ((0, 0.60), (768, 0.66), (1024, 0.81), (3072, 0.85))
TPUS = {
    "v4": Efficiency(128, _V5P, 0.8, 281 * 1.05e9, 10e6, start=START),
    "v5e": Efficiency(
        128,
        _V5E,
        0.8,
        150 * 1.5e9,
        20e6,
        start=START,
        wide=0.88,
        asynchronous=("all-gather", "reduce-scatter", "all-reduce"),
    ),
    "v5p": Efficiency(128, _V5P, 0.8, 281 * 1.75e9, 10e6, start=START),
    "v6e": Efficiency(256, _V6E, 0.8, 600 * 1.75e9, 20e6, start=START, costly=2.5),
    "tpu7x": Efficiency(256, _TPU7X, 0.8, 2 * 287 * 2.2e9, 10e6, start=START),
}
# GPUs: the H100 and the kernels of experiments/benchmarks/attention; the vector rate is that of a sixteenth of the dense bfloat16 peak.
GPU = Efficiency(64, ((0, 0.7),), 0.85, 3e13, 0.0, hop=3e-6, asynchronous=_BY_SHARD)


def efficiency(name: str) -> Efficiency:
    """The efficiency of a chip of CHIPS."""
    return TPUS.get(name, GPU)


def kernel_seconds(kernel: Kernel, chip: Chip, reached: Efficiency, devices: int = 1, slower: float = 1.0) -> float:
    """Return the time of one run of a kernel on a device: that of its slowest unit, memory, matrix or vector unit.

    All arrays that a kernel reads or writes but the operands of its products pass through the vector unit. In loops, whose stacks are sliced
    and updated in the same kernels, the matrix unit waits for it.

    Args:
      kernel: the kernel.
      chip: rates of the device.
      reached: what programs reach.
      devices: devices of a chip.
      slower: bfloat16 products that a product takes; one of 8-bit numbers takes one of its own.
    """
    matrix = sum(
        product_seconds(one, chip, reached, kernel.is_custom) * (slower if one.item > 1 else 1)
        for one in kernel.products
    )
    moved = sum(abs(size) for size in kernel.arrays if size > 0 or -size > reached.cache)
    elements = 0.0 if kernel.is_custom else max(0.0, kernel.elements - sum(one.operands for one in kernel.products))
    vector = (elements + reached.costly * kernel.costly) * devices / reached.elements
    memory = moved / (chip.hbm_bandwidth * reached.memory)
    start = reached.start * (2 if kernel.products else 1)
    return start + max(matrix + vector if kernel.is_looped else max(matrix, vector), memory)


def product_seconds(product: Product, chip: Chip, reached: Efficiency, is_custom: bool = False) -> float:
    """Return the time of a product on the matrix unit."""
    if is_custom:
        return product.flops / (chip.flops * reached.attention)
    place = bisect.bisect_right(reached.products, (product.inner, math.inf)) - 1
    fraction = reached.products[place][1]
    if min(product.rows, product.inner, product.columns) >= WIDE:
        fraction = min(fraction, reached.wide)
    return padded_flops(product, reached.tile) / (chip.product_flops(product.item) * fraction)


def padded_flops(product: Product, tile: int) -> float:
    """Operations of a product whose contraction and one side fill whole tiles of the matrix unit, and the other side whole registers."""
    padded = min(_ceil(product.rows, one) * _ceil(product.columns, other) for one, other in ((8, tile), (tile, 8)))
    return 2.0 * product.batch * padded * _ceil(product.inner, tile)


def _ceil(size: int, tile: int) -> int:
    return math.ceil(size / tile) * tile

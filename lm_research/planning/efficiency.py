"""Rates that compiled programs reach, as fractions of the data sheets' (parallel/hardware.py)."""

from __future__ import annotations

import dataclasses
import math

from lm_research.parallel.hardware import Chip
from lm_research.planning.fusion import Kernel, Product


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What programs reach on a kind of chip.

    Attributes:
      tile: side of the matrix unit; the contraction and the columns of a product are padded to multiples.
      products: fraction of the peak in large bfloat16 products.
      attention: fraction of the peak in kernels of attention.
      memory: fraction of the bandwidth of memory.
      vector: elementwise operations per second of the chip.
      start: seconds between two kernels.
      cache: bytes of an array that stays on the chip between two kernels.
      hop: seconds of latency of a collective per device of a ring.
    """

    tile: int
    products: float
    attention: float
    memory: float
    vector: float
    start: float
    cache: float
    hop: float = 1e-6


# Vector units of TPUs: lanes x sublanes x slots x clock x cores, 8 x 128 x 4 x GHz ("How to Scale Your Model", part 2).
TPUS = {
    "v4": Efficiency(128, 1.0, 0.35, 1.0, 2 * 4096 * 1.05e9, 0.0, 20e6),
    "v5e": Efficiency(128, 1.0, 0.35, 1.0, 4096 * 1.5e9, 0.0, 20e6),
    "v5p": Efficiency(128, 1.0, 0.35, 1.0, 2 * 4096 * 1.75e9, 0.0, 20e6),
    "v6e": Efficiency(256, 1.0, 0.35, 1.0, 4096 * 1.75e9, 0.0, 20e6),
    "tpu7x": Efficiency(256, 1.0, 0.35, 1.0, 2 * 4096 * 1.9e9, 0.0, 20e6),
}
# GPUs: FLOP/s of float32 without tensor cores are a sixteenth of the dense bfloat16 peak.
GPU = Efficiency(64, 0.7, 0.35, 0.85, 6e13, 2e-6, 0.0, 3e-6)


def efficiency(name: str) -> Efficiency:
    """The efficiency of a chip of CHIPS."""
    return TPUS.get(name, GPU)


def kernel_seconds(kernel: Kernel, chip: Chip, reached: Efficiency, slower: float = 1.0) -> float:
    """Return the time of one run of a kernel on a device: that of its slowest unit, plus the start.

    Args:
      kernel: the kernel.
      chip: rates of the device.
      reached: their fractions.
      slower: bfloat16 products that a product takes.
    """
    rate = chip.flops * (reached.attention if kernel.is_custom else reached.products)
    matrix = sum(padded_flops(one, 1 if kernel.is_custom else reached.tile) for one in kernel.products) * slower / rate
    moved = sum(abs(size) for size in kernel.arrays if size > 0 or -size > reached.cache)
    memory = moved / (chip.hbm_bandwidth * reached.memory)
    return max(matrix, memory, kernel.vector_ops / reached.vector) + reached.start


def padded_flops(product: Product, tile: int) -> float:
    """Operations of a product whose contraction and one side fill whole tiles of the matrix unit, and the other side whole registers."""
    padded = min(_ceil(product.rows, one) * _ceil(product.columns, other) for one, other in ((8, tile), (tile, 8)))
    return 2.0 * product.batch * padded * _ceil(product.inner, tile)


def _ceil(size: int, tile: int) -> int:
    return math.ceil(size / tile) * tile

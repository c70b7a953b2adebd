"""Calibration of planning/reading.py: programs whose real speed is published, and how they read.

A factor is the real MFU over the one that is read; the calibrated MFU of a program is what is read, times the factor of its chip. Both
are only as good as the likeness of the program to ANCHORS, so reports show them beside the figures as read.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A program with published speed.

    Attributes:
      chip: name of the chip.
      program: what it computes.
      source: where its speed is published.
      mfu: the published MFU.
      roof_mfu, cycles_mfu: what planning/reading.py reads of the program, compiled by libtpu 0.0.52.
    """

    chip: str
    program: str
    source: str
    mfu: float
    roof_mfu: float
    cycles_mfu: float


ANCHORS = (
    Anchor(
        "v5e",
        "products of bfloat16 matrices of 8,192 x 8,192 on one chip",
        "docs.jax.dev/en/latest/pallas/tpu/matmul, 'XLA matmul': 6.05 ms each with the call's overhead, 92.3% of 197 TFLOP/s",
        mfu=0.923,
        roof_mfu=1.0,
        cycles_mfu=0.876,
    ),
    Anchor(
        "v5e",
        "a step of a 15.9B decoder on v5e:16x16: the sizes, batch, remat and compiler flags of MaxText's configs/v5e/16b.sh, our code",
        "MaxText's README, 'Runtime Performance Results', TPU v5e: 16B on 1x v5e-256, 120 TFLOP/s per chip, 61.10%",
        mfu=0.611,
        roof_mfu=0.729,
        cycles_mfu=0.587,
    ),
)


@dataclasses.dataclass(frozen=True)
class Factors:
    """Real over read MFU of a chip, by both ways of reading: geometric means over its anchors."""

    roof: float
    cycles: float


def factors(chip: str) -> Factors | None:
    """Return the factors of a chip, or None without a published program for it."""
    anchors = [anchor for anchor in ANCHORS if anchor.chip == chip]
    if not anchors:
        return None
    roof = math.fsum(math.log(one.mfu / one.roof_mfu) for one in anchors) / len(anchors)
    cycles = math.fsum(math.log(one.mfu / one.cycles_mfu) for one in anchors) / len(anchors)
    return Factors(math.exp(roof), math.exp(cycles))

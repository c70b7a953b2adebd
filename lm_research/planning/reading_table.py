"""Formatting of what planning/reading.py reads as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_research.parallel.hardware import GIB
from lm_research.planning.compiled import CompiledPlan
from lm_research.planning.reading import Reading, Temporary

# Entries of each table.
LIMIT = 12


def reading_lines(result: CompiledPlan) -> Iterator[str]:
    """Format the reading of a compiled step: totals, collectives, kernels, expensive lines and large temporaries."""
    reading = result.reading
    yield (
        f"program: {reading.flops / 1e12:,.4g} TFLOP (the model has {result.flops / 1e12:,.4g}), {gibibytes(reading.hbm_bytes)} between "
        "HBM and chip"
    )
    yield from aligned(_totals(result))
    if reading.transfers:
        yield f"collectives ({gibibytes(reading.synchronous_bytes)} synchronous)"
        yield from aligned(_transfers(reading))
    if reading.kernels:
        yield "kernels"
        yield from aligned(_kernels(reading))
    yield "most expensive lines (ms)"
    yield from aligned(_lines(reading))
    yield "largest temporaries"
    yield from aligned(_temporaries(reading.temporaries))
    if result.float32:
        yield "float32 temporaries, although the model computes in 16 bits"
        yield from aligned(_temporaries(result.float32))


def _totals(result: CompiledPlan) -> Iterator[tuple[str, ...]]:
    reading, known = result.reading, result.calibration
    rows = [("roof", reading.roof_seconds, result.roof_mfu, known and known.roof)]
    rows.append(("cycles", reading.cycles_seconds, result.cycles_mfu, known and known.cycles))
    for name, seconds, mfu, factor in rows:
        calibrated = (
            f"calibrated {mfu * factor:.1%} (x {factor:.3f})" if factor else "not calibrated: no published speed"
        )
        yield (f"  {name}", f"{seconds:.4g} s", f"MFU {mfu:.1%}", calibrated)


def _transfers(reading: Reading) -> Iterator[tuple[str, ...]]:
    yield ("  kind", "axes", "devices", "times", "of", "overlapped", "ms", "exposed ms", "from")
    for one in reading.transfers[:LIMIT]:
        yield (
            f"  {one.kind}",
            "+".join(one.axes),
            f"{one.devices:,}",
            f"{one.times:,}",
            gibibytes(one.array_bytes),
            "yes" if one.overlapped else "no",
            _ms(one.seconds),
            _ms(one.exposed_seconds),
            one.source,
        )


def _kernels(reading: Reading) -> Iterator[tuple[str, ...]]:
    yield ("  kernel", "times", "TFLOP", "ms", "cost")
    for one in reading.kernels:
        cost = "declared" if one.declared else "not declared"
        yield (f"  {one.name}", f"{one.times:,}", f"{one.flops / 1e12:.3g}", _ms(one.seconds), cost)


def _lines(reading: Reading) -> Iterator[tuple[str, ...]]:
    yield ("  cycles", "roof", "TFLOP", "HBM", "line", "operation")
    for one in reading.lines[:LIMIT]:
        times = f"  {_ms(one.cycles_seconds)}", _ms(one.roof_seconds)
        yield (*times, f"{one.flops / 1e12:.3g}", gibibytes(one.hbm_bytes), one.source, one.operation)


def _temporaries(found: Sequence[Temporary]) -> Iterator[tuple[str, ...]]:
    yield ("  each", "number", "array", "line", "operation", "instruction")
    for one in found[:LIMIT]:
        yield (f"  {gibibytes(one.num_bytes)}", str(one.count), one.array, one.source, one.operation, one.instruction)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def gibibytes(size: float) -> str:
    """Format bytes in GiB (2^30), or small amounts in MiB (2^20)."""
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 100 or not size else f"{size / GIB * 1024:,.2f} MiB"


def aligned(rows: Sequence[tuple[str, ...]] | Iterator[tuple[str, ...]]) -> list[str]:
    """Format rows of cells as lines with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

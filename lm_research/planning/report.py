"""Formatting of plans as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_research.planning.compiled import CompiledPlan
from lm_research.planning.estimate import ResourcePlan
from lm_research.planning.reading_table import aligned, gigabytes, reading_lines
from lm_research.planning.search import describe


def table(plan: ResourcePlan) -> str:
    """Format a plan as aligned lines."""
    unit = "chip" if plan.devices == plan.chips else "device"
    trained = f"{plan.parameters:,} parameters"
    if plan.trained < plan.parameters:
        trained = f"{plan.trained:,} of {trained} trained"
    rows = [
        (
            "topology",
            f"{plan.topology}, {plan.chips:,} chips" + (f", {plan.devices:,} devices" if unit == "device" else ""),
        ),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        (
            "batch",
            f"{plan.micro_batches} x {plan.rows_per_chip} rows per {unit}, {plan.tokens_per_step:,} tokens per step",
        ),
        ("model", f"{trained}, {plan.flops_per_token / 1e9:.3g} GFLOP per token, remat {plan.remat}"),
    ]
    lines = [*aligned(rows), "", f"memory per {unit}"]
    lines += aligned([(f"  {kind}", gigabytes(size)) for kind, size in plan.memory.items()])
    verdict = "fits" if plan.fits else "does NOT fit"
    lines += [f"  = {gigabytes(plan.memory_bytes)} of {gigabytes(plan.chip_bytes)}: {verdict}", ""]
    lines += [f"collectives per step and {unit}" if plan.collectives else "no collectives: one device"]
    cells = [("  axis", "what", "times", "of", "links", "network")] if plan.collectives else []
    cells += [
        (
            f"  {c.axis}",
            f"{c.kind} of {c.purpose}",
            f"{c.count:,}",
            gigabytes(c.array_bytes),
            gigabytes(c.link_bytes),
            gigabytes(c.network_bytes),
        )
        for c in plan.collectives
    ]
    lines += [*aligned(cells), "", "seconds per step, each resource separately"]
    lines += aligned([(f"  {name}", f"{value:.4g}") for name, value in plan.seconds.items()])
    lines += ["", *aligned(_outcome(plan))]
    return "\n".join(lines)


def _outcome(plan: ResourcePlan) -> Iterator[tuple[str, str]]:
    yield "step", f"{plan.step_seconds:.4g} s at best"
    yield "MFU", f"{plan.mfu:.1%}"
    yield "tokens/s", f"{plan.tokens_per_second:,.0f}"
    if plan.chip_hours is None:
        yield "run", "unknown: the number of steps of train.num_epochs depends on the corpus"
    else:
        days = plan.chip_hours / plan.chips / 24
        yield "run", f"{plan.num_steps:,} steps, {days:.3g} days, {plan.chip_hours:,.0f} chip-hours"
    if plan.cost is not None:
        yield "cost", f"{plan.cost:,.0f}"


def ranking(plans: Sequence[ResourcePlan], limit: int = 10) -> str:
    """Format the best plans of a search, one per line."""
    rows = [("", "plan", "step s", "MFU", "memory", "chip-hours")]
    for number, plan in enumerate(plans[:limit], start=1):
        hours = "" if plan.chip_hours is None else f"{plan.chip_hours:,.0f}"
        rows.append(
            (
                str(number),
                describe(plan),
                f"{plan.step_seconds:.4g}",
                f"{plan.mfu:.1%}",
                gigabytes(plan.memory_bytes),
                hours,
            )
        )
    return "\n".join([f"{len(plans)} plans fit; the fastest are:", *aligned(rows)])


def compiled_table(result: CompiledPlan, expected: float, chip_bytes: float, tolerance: float) -> str:
    """Format the compiler's figures, and warn if its peak differs from the `expected` bytes by more than `tolerance`."""
    difference = result.peak_bytes / expected - 1
    fits = "fits" if result.peak_bytes <= chip_bytes else "does NOT fit"
    reuse = f"{result.reused} of {result.donated} arrays of the state are updated in place"
    lines = [
        f"compiled in {result.compile_seconds:.0f} s",
        f"  peak {gigabytes(result.peak_bytes)} of {gigabytes(chip_bytes)}: {fits} (state and batch {gigabytes(result.argument_bytes)}, "
        f"temporaries {gigabytes(result.temporary_bytes)})",
        f"  {reuse}",
    ]
    if abs(difference) > tolerance:
        lines.append(
            f"  DISAGREEMENT: the compiler's peak differs by {difference:+.0%} from the arithmetic's {gigabytes(expected)}; trust the compiler."
        )
    else:
        lines.append(f"  the compiler's peak differs by {difference:+.0%} from the arithmetic's {gigabytes(expected)}")
    return "\n".join([*lines, "", *reading_lines(result)])

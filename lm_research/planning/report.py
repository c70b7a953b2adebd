"""Formatting of plans as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_research.planning.compiled import CompiledPlan
from lm_research.planning.estimate import ResourcePlan
from lm_research.planning.reading_table import aligned, gibibytes, reading_lines
from lm_research.planning.scaling import Step
from lm_research.planning.search import describe


def table(plan: ResourcePlan) -> str:
    """Format a plan as aligned lines."""
    trained = f"{plan.parameters:,} parameters"
    if plan.trained < plan.parameters:
        trained = f"{plan.trained:,} of {trained} trained"
    unit = "chip" if plan.devices == plan.chips else "device"
    devices = f", {plan.devices:,} devices" if unit == "device" else ""
    rows = [
        ("topology", f"{plan.topology}, {plan.chips:,} chips" + devices),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        (
            "batch",
            f"{plan.micro_batches} x {plan.rows_per_device} rows per {unit}, {plan.tokens_per_step:,} tokens per step",
        ),
        ("model", f"{trained}, {plan.flops_per_token / 1e9:.3g} GFLOP per token, remat {plan.remat}"),
    ]
    lines = [*aligned(rows), "", f"memory per {unit}"]
    lines += aligned([(f"  {kind}", gibibytes(size)) for kind, size in plan.memory.items()])
    verdict = "fits" if plan.fits else "does NOT fit"
    lines += [f"  = {gibibytes(plan.memory_bytes)} of {gibibytes(plan.device_bytes)}: {verdict}", ""]
    lines += [f"collectives per step and {unit}" if plan.collectives else "no collectives: one device"]
    cells = [("  axis", "what", "times", "of", "links", "network")] if plan.collectives else []
    cells += [
        (
            f"  {c.axis}",
            f"{c.kind} of {c.purpose}",
            f"{c.count:,}",
            gibibytes(c.array_bytes),
            gibibytes(c.link_bytes),
            gibibytes(c.network_bytes),
        )
        for c in plan.collectives
    ]
    lines += [*aligned(cells), "", "seconds per step, in order"]
    lines += aligned(
        [(f"  {name}", f"{value:.4g}", f"{value / plan.step_seconds:.0%}") for name, value in plan.parts.items()]
    )
    lines += ["", "seconds per step if one resource limited it"]
    lines += aligned([(f"  {name}", f"{value:.4g}") for name, value in plan.seconds.items()])
    lines += ["", *aligned(_outcome(plan))]
    return "\n".join(lines)


def _outcome(plan: ResourcePlan) -> Iterator[tuple[str, str]]:
    yield "step", f"{plan.step_seconds:.4g} s; {plan.best_seconds:.4g} s at best"
    yield "MFU", f"{plan.mfu:.1%}; {plan.best_mfu:.1%} at best"
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
                gibibytes(plan.memory_bytes),
                hours,
            )
        )
    return "\n".join([f"{len(plans)} plans fit; the fastest are:", *aligned(rows)])


def scaling_table(steps: Sequence[Step]) -> str:
    """Format plans of weak scaling, one number of chips per line."""
    rows = [("chips", "topology", "mesh", "step s", "MFU", "memory", "of the step")]
    for step in steps:
        chips, topology = f"{step.topology.num_chips:,}", str(step.topology)
        if step.plan is None:
            rows.append((chips, topology, "", "", "", "", step.reason))
            continue
        mesh = " x ".join(f"{axis} {size}" for axis, size in step.plan.mesh.items() if size > 1)
        memory = gibibytes(step.plan.memory_bytes) + ("" if step.plan.fits else " (too much)")
        rows.append(
            (chips, topology, mesh, f"{step.plan.step_seconds:.4g}", f"{step.plan.mfu:.1%}", memory, step.reason)
        )
    return "\n".join(["weak scaling, the same sequences per device", *aligned(rows)])


def compiled_table(result: CompiledPlan, expected: float, chip_bytes: float, tolerance: float) -> str:
    """Format the compiler's figures, and warn if its peak differs from the `expected` bytes by more than `tolerance`."""
    difference = result.peak_bytes / expected - 1
    fits = "fits" if result.peak_bytes <= chip_bytes else "does NOT fit"
    reuse = f"{result.reused} of {result.donated} arrays of the state are updated in place"
    lines = [
        f"compiled in {result.compile_seconds:.0f} s",
        f"  peak {gibibytes(result.peak_bytes)} of {gibibytes(chip_bytes)}: {fits} (state and batch {gibibytes(result.argument_bytes)}, "
        f"temporaries {gibibytes(result.temporary_bytes)})",
        f"  {reuse}",
    ]
    if abs(difference) > tolerance:
        lines.append(
            f"  DISAGREEMENT: the compiler's peak differs by {difference:+.0%} from the arithmetic's {gibibytes(expected)}; trust the compiler."
        )
    else:
        lines.append(f"  the compiler's peak differs by {difference:+.0%} from the arithmetic's {gibibytes(expected)}")
    return "\n".join([*lines, "", *reading_lines(result)])

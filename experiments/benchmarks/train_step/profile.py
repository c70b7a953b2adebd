"""`python -m experiments.benchmarks.train_step.profile --rows bert-4x256-128`: where the time of our step goes, on a CPU.

A trace does not tell: XLA's CPU runtime hands its products to other threads and stops the clock. So each part of the step is run
alone, with the functions and shapes of the step, forward and backward, and counted as often as it occurs. Parts and whole step
take turns; each counts with its fastest time, because others on the machine can only add to it. What the parts leave of the
step is the residue: residual sums, small heads, and what the parts cost each other in a common cache. It can be negative:
alone, a part writes results to memory that the step fuses into the next.

The products of each part are also timed by themselves, ours and (where it is installed) PyTorch's: the floor of that part.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from experiments.benchmarks.train_step.parts import Group, Part, make_groups, make_step
from experiments.benchmarks.train_step.worker import ALLOCATOR
from experiments.benchmarks.train_step.workload import MODES, Row, choose


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.train_step.profile", description=__doc__)
    parser.add_argument("--rows", default="quick", help="quick, all, or names, as for run.py")
    parser.add_argument("--modes", default=",".join(MODES), help="paper, equal or both (default)")
    parser.add_argument("--rounds", type=int, default=20, help="times that each part is run")
    options = parser.parse_args(argv)
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them as a process starts
        command = [sys.executable, "-m", "experiments.benchmarks.train_step.profile", *argv]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    for row in choose(options.rows, options.modes, "cpu"):
        step, groups = measure(row, options.rounds)
        print(f"\n**{row.name}, {row.mode}**\n\n" + "\n".join(table(step, groups)), flush=True)
    return 0


def measure(row: Row, rounds: int) -> tuple[Part, list[Group]]:
    """The step and its parts, each with its fastest time of all rounds."""
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    step = make_step(row)
    groups = make_groups(row, torch)
    everything = [step, *(part for group in groups for part in (*group.parts, *group.products, *group.torch))]
    for _ in range(1 + rounds):
        for part in everything:
            part.time()
    return step, groups


def table(step: Part, groups: list[Group]) -> Iterator[str]:
    """Markdown: for each group its products, then what else it takes."""
    yield "| part | ms | share | products, GFLOP/s: all (each) | the same in PyTorch |"
    yield "|---|---|---|---|---|"
    covered = 0.0
    for group in groups:
        whole, floor = (sum(part.total for part in parts) for parts in (group.parts, group.products))
        if group.products:
            yield line(f"{group.name}: products", floor, step, speeds(group.products), speeds(group.torch))
        yield line(f"{group.name}: the rest" if group.products else group.name, whole - floor, step)
        covered += whole
    yield line("residue", step.total - covered, step)
    yield line("step", step.total, step)


def line(name: str, seconds: float, step: Part, *more: str) -> str:
    cells = [name, f"{1e3 * seconds:.1f}", f"{seconds / step.total:.0%}", *more, *[""] * (2 - len(more))]
    return f"| {' | '.join(cells)} |"


def speeds(products: list[Part]) -> str:
    """GFLOP/s of all products together, and of each in brackets."""
    if not products:
        return ""
    together = sum(p.count * p.flops for p in products) / sum(p.total for p in products)
    return f"{together / 1e9:.0f} ({', '.join(f'{p.flops / p.seconds / 1e9:.0f}' for p in products)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

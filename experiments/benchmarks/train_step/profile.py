"""`python -m experiments.benchmarks.train_step.profile --rows bert-4x256-128`: where the time of our step goes, on a CPU.

A trace does not show this: XLA's CPU runtime hands its products to other threads and stops the clock. So each part of the step runs
separately, with the functions and shapes of the step, forward and backward, and counts as often as it occurs. Parts and whole step
take turns; each counts with its fastest time, because other processes can only add to it. The time of the step that the parts do
not explain is the residue: residual sums, small heads, and the parts' competition for the cache. It can be negative: on its own, a
part writes results to memory that the step fuses into the next.

The products of each part are also timed by themselves, ours and (where it is installed) PyTorch's: the lower bound of that part.
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
    """Return the step and its parts, each with its fastest time of all rounds."""
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    step = make_step(row)
    groups = make_groups(row, torch)
    everything = [step, *(part for group in groups for part in (*group.parts, *group.products, *group.torch))]
    for _ in range(1 + rounds):
        for part in everything:
            part.time()
    return step, groups


def table(step: Part, groups: list[Group]) -> Iterator[str]:
    """Yield Markdown: for each group its products, then its remaining time."""
    yield "| part | ms | share | products, GFLOP/s: all (each) | the same in PyTorch |"
    yield "|---|---|---|---|---|"
    covered = 0.0
    for group in groups:
        whole, bound = (sum(part.total for part in parts) for parts in (group.parts, group.products))
        if group.products:
            yield line(f"{group.name}: products", bound, step, speeds(group.products), speeds(group.torch))
        yield line(f"{group.name}: the rest" if group.products else group.name, whole - bound, step)
        covered += whole
    yield line("residue", step.total - covered, step)
    yield line("step", step.total, step)


def line(name: str, seconds: float, step: Part, *more: str) -> str:
    cells = [name, f"{1e3 * seconds:.1f}", f"{seconds / step.total:.0%}", *more, *[""] * (2 - len(more))]
    return f"| {' | '.join(cells)} |"


def speeds(products: list[Part]) -> str:
    """Return the GFLOP/s of all products together, and of each in brackets."""
    if not products:
        return ""
    together = sum(p.count * p.flops for p in products) / sum(p.total for p in products)
    return f"{together / 1e9:.0f} ({', '.join(f'{p.flops / p.seconds / 1e9:.0f}' for p in products)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

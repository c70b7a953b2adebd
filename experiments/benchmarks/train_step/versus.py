"""`python -m experiments.benchmarks.train_step.versus BEFORE AFTER --rows bert-4x256-128`: our step in two checkouts, in turns.

Judges a change on a machine that is also used for other work: both checkouts take a few steps in turns, and are compared by the
fastest step and the fastest quarter of steps, in seconds and in processor seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys

from experiments.benchmarks.train_step.worker import Worker
from experiments.benchmarks.train_step.workload import MODES, Row, choose


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.train_step.versus", description=__doc__)
    parser.add_argument("checkouts", nargs="+", type=pathlib.Path, help="roots of the repository's checkouts")
    parser.add_argument("--rows", default="quick", help="quick, all, or names, as for run.py")
    parser.add_argument("--modes", default=",".join(MODES), help="paper, equal or both (default)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each checkout")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="compute type of both")
    options = parser.parse_args(argv)
    print(
        "| row | checkout | ms: fastest | first quartile | median | processor ms: fastest turn | median turn | loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in choose(options.rows, options.modes, "cpu"):
        for line in measure(
            dataclasses.replace(row, dtype=options.dtype), options.checkouts, options.rounds, options.steps
        ):
            print(line, flush=True)
    return 0


def measure(row: Row, checkouts: list[pathlib.Path], rounds: int, steps: int) -> list[str]:
    """Return a line of the table for each checkout."""
    workers = [Worker("ours_side", root=root) for root in checkouts]
    try:
        for worker in workers:
            worker.request(build=dataclasses.asdict(row), options={"scan_layers": False})
        losses = [worker.request(go=2)["loss"] for worker in workers]  # equal, unless the work differs
        turns = [[worker.request(go=steps) for worker in workers] for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.close()
    lines = []
    for root, loss, own in zip(checkouts, losses, zip(*turns, strict=True), strict=True):
        wall = [1e3 * second for turn in own for second in turn["seconds"]]
        cpu = [1e3 * turn["cpu_seconds"] / steps for turn in own]
        numbers = (min(wall), statistics.quantiles(wall)[0], statistics.median(wall), min(cpu), statistics.median(cpu))
        cells = [f"{row.name} {row.mode}", root.name, *(f"{number:.0f}" for number in numbers), f"{loss:.6f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

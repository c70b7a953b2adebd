"""`python -m experiments.benchmarks.generate.run`: our generate and transformers', in turns, on the same work.

Each side runs in a separate process that keeps its model and generates on request. README.md next to this file says how the
numbers are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

from experiments.benchmarks.generate.worker import Worker
from experiments.benchmarks.generate.workload import NEW, Row, choose
from experiments.benchmarks.train_step.machine import busy_seconds, describe, describe_device
from experiments.benchmarks.train_step.report import OURS, TORCH, is_quiet

MODULES = {OURS: "ours_side", TORCH: "torch_side"}
# Ways to run each side, of which the fastest is timed.
WAYS: dict[str, list[dict[str, str]]] = {
    OURS: [{}],
    TORCH: [{"attention": "sdpa"}, {"attention": "eager"}, {"attention": "sdpa", "cache": "static"}],
}
BYTES = {"float32": 4, "bfloat16": 2}
PATIENCE = 3  # rounds tried for each requested quiet round


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.generate.run", description=__doc__)
    parser.add_argument(
        "--rows", default="small", help="small (default), all, or names such as 4x256-batch1,12x768-beam4"
    )
    parser.add_argument("--side", default="both", choices=("both", "ours"), help="ours leaves transformers out")
    parser.add_argument(
        "--dtype",
        default="fastest",
        choices=("fastest", *BYTES),
        help="type of both sides, or each side's fastest (default)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of quiet rounds")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results.json"))
    parser.add_argument("--tables", type=pathlib.Path, help="only print the table of an earlier output file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.tables:
        print(table(json.loads(options.tables.read_text())["results"]))
        return 0
    try:
        rows = choose(options.rows)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    both = options.side == "both" and all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    environment = describe(describe_device()) | {
        "command": "python -m experiments.benchmarks.generate.run " + " ".join(argv)
    }
    results: list[dict[str, Any]] = []
    for row in rows:
        results.append(measure(row, both, options.dtype, options.repeats))
        print(line(results[-1]), file=sys.stderr, flush=True)
        options.output.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
    print(table(results))
    return 0


def measure(row: Row, both: bool, dtype: str, repeats: int) -> dict[str, Any]:
    """Run rounds of both sides in turns until `repeats` were quiet."""
    dtypes = [*BYTES] if dtype == "fastest" else [dtype]
    ways = {
        name: choose_way(row, name, [{"dtype": one, **way} for one in dtypes for way in WAYS[name]])
        for name in ((OURS, TORCH) if both else (OURS,))
    }
    workers = {name: Worker(MODULES[name]) for name in ways}
    sides: dict[str, dict[str, Any]] = {}
    try:
        for name, worker in workers.items():
            about = worker.request(build=dataclasses.asdict(row), options=ways[name])
            first = worker.request(go=1)["seconds"][0]  # with compilation
            worker.request(go=1)
            sides[name] = {"about": about, "options": ways[name], "first_seconds": first, "turns": []}
        quiet = rounds = 0
        while quiet < repeats and rounds < PATIENCE * repeats:
            turns = [take_turn(worker) for worker in workers.values()]
            for side, turn in zip(sides.values(), turns, strict=True):
                side["turns"].append(turn)
            rounds += 1
            quiet += is_quiet(turns)
        for name, worker in workers.items():
            sides[name]["peak_bytes"] = worker.request(end=True)["peak_bytes"]
    finally:
        for worker in workers.values():
            worker.close()
    result = {"row": dataclasses.asdict(row), "sides": sides}
    return result | {"summary": summarize(result)}


def choose_way(row: Row, side: str, ways: list[dict[str, str]]) -> dict[str, str]:
    """Choose the options of a side with the fastest of two calls."""
    if len(ways) == 1:
        return ways[0]
    seconds = []
    for options in ways:
        worker = Worker(MODULES[side])
        try:
            worker.request(build=dataclasses.asdict(row), options=options)
            worker.request(go=1)
            seconds.append(min(worker.request(go=2)["seconds"]))
        except RuntimeError as error:
            print(f"{side} cannot run {options}: {error}", file=sys.stderr)
            seconds.append(float("inf"))
        finally:
            worker.close()
        print(f"{row.name}, {side} {' '.join(options.values())}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return ways[seconds.index(min(seconds))]


def take_turn(worker: Worker) -> dict[str, Any]:
    """Make one call; return it with the fraction of the machine that other processes used meanwhile."""
    time.sleep(0.3)  # idle threads of the last side stop spinning
    before, start = busy_seconds(), time.perf_counter()
    turn = worker.request(go=1)
    after, elapsed = busy_seconds(), time.perf_counter() - start
    others = None
    if before is not None and after is not None:
        others = max(0.0, (after - before - turn["cpu_seconds"]) / (elapsed * (os.cpu_count() or 1)))
    return {"seconds": turn["seconds"][0], "cpu_seconds": turn["cpu_seconds"], "others": others}


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Return the median, fastest and slowest seconds of each side's quiet rounds (all, if none was), and the ratios."""
    sides = result["sides"]
    rounds = list(zip(*(side["turns"] for side in sides.values()), strict=True))
    quiet = [number for number, turns in enumerate(rounds) if is_quiet(list(turns))]
    used = quiet or range(len(rounds))
    numbers = {}
    for name, side in sides.items():
        turns = [side["turns"][number] for number in used]
        seconds = [turn["seconds"] for turn in turns]
        numbers[name] = {
            "median": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "cpu_seconds": statistics.median(turn["cpu_seconds"] for turn in turns),
        }
    summary: dict[str, Any] = {"quiet": len(quiet), "rounds": len(rounds), "sides": numbers}
    if TORCH in numbers:
        for name, key in (("ratio", "median"), ("fastest_ratio", "fastest"), ("cpu_ratio", "cpu_seconds")):
            summary[name] = numbers[TORCH][key] / numbers[OURS][key]
    return summary


COLUMNS = (
    "model",
    "types",
    "ours tokens/s",
    "transformers tokens/s",
    "ratio",
    "goal",
    "by fastest",
    "by CPU time",
    "ours s",
    "transformers s",
    "weights read, GB/s",
    "quiet",
)


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    heads = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS))]
    return "\n".join([*heads, *map(line, results)])


def line(result: dict[str, Any]) -> str:
    row, summary = Row(**result["row"]), result["summary"]
    ours, theirs = summary["sides"][OURS], summary["sides"].get(TORCH)
    ratios = [f"{summary[name]:.2f}" if theirs else "-" for name in ("ratio", "fastest_ratio", "cpu_ratio")]
    goal = f"{row.goal:g}" + (" (short)" if theirs and summary["ratio"] < row.goal else "")

    def span(side):
        return f"{side['median']:.2f} ({side['fastest']:.2f} to {side['slowest']:.2f})" if side else "-"

    def speed(side):
        return f"{row.tokens / side['median']:,.0f}" if side else "-"

    types = [side.get("options", {}).get("dtype", "float32") for side in result["sides"].values()]
    bandwidth = f"{BYTES[types[0]] * row.step_numbers * NEW / ours['fastest'] / 1e9:.1f}"
    quiet = f"{summary['quiet']} of {summary['rounds']}"
    cells = [
        row.name,
        " / ".join(types),
        speed(ours),
        speed(theirs),
        ratios[0],
        goal,
        *ratios[1:],
        span(ours),
        span(theirs),
        bandwidth,
        quiet,
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

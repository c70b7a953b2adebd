"""`python -m experiments.benchmarks.train_step.run`: our training step and PyTorch's, in turns, on the same work.

Each side runs in a separate process that keeps its model and takes steps on request. A row warms both up, then goes round:
some steps of ours, as long a turn of PyTorch's, and again, until enough rounds passed in which nobody else used the
machine. README.md next to this file says how the numbers are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import time
from typing import Any

from experiments.benchmarks.train_step.machine import busy_seconds, describe, describe_device
from experiments.benchmarks.train_step.report import OURS, TORCH, is_quiet, summarize, table
from experiments.benchmarks.train_step.worker import Worker
from experiments.benchmarks.train_step.workload import MODES, Row, choose

TURN_SECONDS, MOST_STEPS = 2.5, 20
# Rounds tried for each requested quiet round.
PATIENCE = 3
MODULES = {OURS: "ours_side", TORCH: "torch_side"}

Variants = dict[str, dict[str, dict[str, Any]]]
# Few layers on a CPU or a GPU run fastest unrolled (model.scan_layers=False); looping over them is for fast compiles.
OURS_OPTIONS: dict[str, Any] = {"scan_layers": False}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.train_step.run", description=__doc__)
    parser.add_argument("--rows", default="quick", help="quick, all, or names such as bert-2x128-128,gpt2-4x256-512")
    parser.add_argument("--modes", default=",".join(MODES), help="paper, equal or both (default)")
    parser.add_argument("--side", default="both", choices=("both", "ours"), help="ours leaves PyTorch out")
    parser.add_argument(
        "--repeats", type=int, default=5, help="number of quiet rounds (at most three times as many are tried)"
    )
    parser.add_argument(
        "--dtype",
        default="fastest",
        choices=("fastest", "float32", "bfloat16"),
        help="on a CPU: compute type of both sides, or each side's fastest (default); parameters are float32",
    )
    parser.add_argument("--compile", action="store_true", help="on a CPU, also try torch.compile (a GPU always does)")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("results.json"), help="written after each row"
    )
    parser.add_argument("--tables", type=pathlib.Path, help="only print the tables of an earlier output file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.tables:
        print_tables(json.loads(options.tables.read_text())["results"])
        return 0
    device = describe_device()
    try:
        rows = choose(options.rows, options.modes, device["platform"])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    choices = variants(options, device["platform"])
    environment = describe(device)
    results: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        print(f"[{number}/{len(rows)}] {row.name} {row.mode} ...", end=" ", flush=True, file=sys.stderr)
        result = measure(row, choices, options.repeats)
        results.append(result)
        summary = result["summary"]
        ratio = f", ratio {summary['ratio']:.2f}" if "ratio" in summary else ""
        speed = summary["sides"][OURS]["tokens_per_second"]
        print(f"{speed:,.0f} tokens/s{ratio}, {summary['quiet']} of {summary['rounds']} quiet", file=sys.stderr)
        options.output.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
    print_tables(results)
    return 0


def print_tables(results: list[dict[str, Any]]) -> None:
    print("\n".join(filter(None, (table(results, mode) for mode in MODES))))


def variants(options: argparse.Namespace, platform_name: str) -> Variants:
    """Return the variants of each side, of which the fastest is timed: side -> name of the variant -> options of the worker.

    PyTorch is left out if it is not requested, not installed or does not support the device.
    """
    ours: dict[str, dict[str, Any]] = {"scan": {}}
    if platform_name in ("cpu", "gpu"):
        ours["unrolled"] = {"scan_layers": False}
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if options.side == "ours" or not installed or platform_name not in ("cpu", "gpu"):
        return {OURS: _typed(ours, options.dtype, platform_name)}
    torch: dict[str, dict[str, Any]] = {"sdpa": {"attention": "sdpa"}}
    torch |= {"eager": {"attention": "eager"}} if platform_name == "cpu" else {}
    if options.compile or platform_name == "gpu":
        torch |= {f"{name} compiled": {**given, "compile": True} for name, given in list(torch.items())}
    return {name: _typed(ways, options.dtype, platform_name) for name, ways in ((OURS, ours), (TORCH, torch))}


def _typed(ways: dict[str, dict[str, Any]], dtype: str, platform_name: str) -> dict[str, dict[str, Any]]:
    """Variants of a side in a type, or on CPUs in both; elsewhere those of the rows."""
    if platform_name != "cpu":
        return ways
    dtypes = ("float32", "bfloat16") if dtype == "fastest" else (dtype,)
    return {f"{name} {one}": {**given, "dtype": one} for one in dtypes for name, given in ways.items()}


def measure(row: Row, choices: Variants, repeats: int) -> dict[str, Any]:
    """Run all rounds of one row, with the fastest variant of each side, and the memory of both."""
    sides = {name: choose_variant(row, name, ways) for name, ways in choices.items()}
    workers = {name: Worker(MODULES[name]) for name in sides}
    try:
        steps, clocks = {}, {}
        for name, worker in workers.items():
            about = worker.request(build=dataclasses.asdict(row), options=sides[name]["options"])
            worker.request(go=2)  # the first steps find caches and memory cold
            warm = worker.request(go=1)
            steps[name] = min(MOST_STEPS, max(1, round(TURN_SECONDS / warm["seconds"][0])))
            clocks[name] = warm["process_seconds"]
            sides[name] |= {"about": about, "turns": []}
        quiet = rounds = 0
        while quiet < repeats and rounds < PATIENCE * repeats:
            turns = []
            for name, worker in workers.items():
                turn, clocks[name] = take_turn(worker, steps[name], clocks[name])
                sides[name]["turns"].append(turn)
                turns.append(turn)
            rounds += 1
            quiet += is_quiet(turns)
    finally:
        for worker in workers.values():
            worker.close()
    result = {"row": dataclasses.asdict(row), "sides": sides}
    return result | {"summary": summarize(result)}


def choose_variant(row: Row, side: str, ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Choose the variant of one side with the fastest step; return its options and memory, and the times of all."""
    probes = {name: probe(row, MODULES[side], options) for name, options in ways.items()}
    best = min(probes, key=lambda name: probes[name]["fastest"])
    memory = probes[best]["memory"]
    return {"variant": best, "options": ways[best], "memory": memory, "probes": probes}


def probe(row: Row, module: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one side briefly under the system's default allocator; return its fastest step and its peak memory."""
    worker = Worker(module, keep_freed_memory=False)
    try:
        worker.request(build=dataclasses.asdict(row), options=options)
        worker.request(go=1)
        fastest = min(worker.request(go=3)["seconds"])
        return {"fastest": fastest, "memory": worker.request(end=True)}
    finally:
        worker.close()


def take_turn(worker: Worker, steps: int, clock: float) -> tuple[dict[str, Any], float]:
    """Take one turn; return it with the fraction of the machine that other processes used meanwhile.

    Args:
      worker: the worker whose turn it is.
      steps: number of steps.
      clock: processor seconds of the worker before the turn.

    Returns:
      The turn, and the worker's processor seconds after it.
    """
    time.sleep(0.3)  # idle threads of the last side stop spinning
    before, start = busy_seconds(), time.perf_counter()
    turn = worker.request(go=steps) | {"steps": steps, "others": None}
    after, elapsed = busy_seconds(), time.perf_counter() - start
    own = turn["process_seconds"] - clock
    if before is not None and after is not None:
        turn["others"] = round(max(0.0, (after - before - own) / (elapsed * (os.cpu_count() or 1))), 3)
    return turn, turn["process_seconds"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m experiments.benchmarks.train_step.trace`: where our step spends its time on an accelerator, kernel by kernel.

A few steps run under jax.profiler, and the time of each kernel is added up. `--directory` reads a trace that a run left
(`--config.profile.steps=10-13`, WORKDIR/profile) instead.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import re
import sys
import tempfile
import time

import jax

from experiments.benchmarks.train_step.workload import MODES, Row, batches, choose

STEPS = 5


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.train_step.trace", description=__doc__)
    parser.add_argument("--rows", default="all", help="all, or names, as for run.py")
    parser.add_argument("--modes", default=",".join(MODES), help="paper, equal or both (default)")
    parser.add_argument(
        "--options", type=json.loads, default={}, help='changes to the model: {"attention_backend": "xla"}'
    )
    parser.add_argument("--batch", type=int, help="rows of a batch instead of the table's")
    parser.add_argument("--top", type=int, default=25, help="kernels shown")
    parser.add_argument("--directory", type=pathlib.Path, help="a trace that exists")
    options = parser.parse_args(argv)
    if options.directory:
        print("\n".join(table(kernels(options.directory), 1, options.top)))
        return 0
    platform = jax.default_backend()
    for row in choose(options.rows, options.modes, platform):
        row = dataclasses.replace(row, batch=options.batch or row.batch)
        with tempfile.TemporaryDirectory() as directory:
            seconds = run(row, options.options, pathlib.Path(directory))
            speed = f"{1e3 * seconds:.2f} ms a step, {row.tokens / seconds:,.0f} tokens/s untraced"
            print(f"\n**{row.name}, {row.mode}, batch {row.batch}**: {speed}\n")
            print("\n".join(table(kernels(pathlib.Path(directory)), STEPS, options.top)), flush=True)
    return 0


def run(row: Row, options: dict, directory: pathlib.Path) -> float:
    """Run steps after a warm-up, once timed and once traced into the directory; return the seconds of a step."""
    from experiments.benchmarks.train_step.ours_side import OurSide

    side = OurSide(row, options)
    prepared = [side.prepare(batch) for batch in itertools.islice(batches(row), STEPS)]
    seconds = 0.0
    for turn in ("warm-up", "timed", "traced"):
        if turn == "traced":
            jax.profiler.start_trace(directory)
        start = time.perf_counter()
        for batch in prepared:
            side.step(batch)
        side.wait()
        seconds = time.perf_counter() - start if turn == "timed" else seconds
    jax.profiler.stop_trace()
    return seconds / STEPS


def kernels(directory: pathlib.Path) -> dict[str, tuple[float, int]]:
    """Return kernel name, without its number -> seconds and calls, over the streams of all accelerators of the trace."""
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for path in sorted(directory.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not re.match(r"Stream|XLA Ops", line.name):
                    continue
                for event in line.events:
                    name = re.sub(r"[._]\d+$", "", event.name)
                    found[name][0] += event.duration_ns / 1e9
                    found[name][1] += 1
    return {name: (seconds, calls) for name, (seconds, calls) in found.items()}


def table(found: dict[str, tuple[float, int]], steps: int, top: int) -> list[str]:
    """Return Markdown: the kernels that take longest per step."""
    total = sum(seconds for seconds, _ in found.values())
    lines = ["| kernel | ms a step | share | calls a step |", "|---|---|---|---|"]
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    for name, (seconds, calls) in ranked[:top]:
        lines.append(f"| {name[:90]} | {1e3 * seconds / steps:.3f} | {seconds / total:.1%} | {calls / steps:g} |")
    rest = sum(seconds for _, (seconds, _) in ranked[top:])
    lines.append(
        f"| {max(0, len(ranked) - top)} others | {1e3 * rest / steps:.3f} | {rest / max(total, 1e-12):.1%} | |"
    )
    lines.append(f"| all | {1e3 * total / steps:.3f} | 100% | |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

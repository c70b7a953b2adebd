"""`python -m experiments.benchmarks.gpu.run --output FILE`: training steps on one GPU, a row at a time.

A row's line is written as it is made. Rows that FILE has, also those that ended the process, are left out, so that the command can be
repeated until it ends with code 0 (all.sh does). README.md next to this file has the question and the results.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.gpu.rows import ROWS, Row, make_batch, make_config
from lm_research.parallel.batches import to_global
from lm_research.parallel.hardware import peak_flops
from lm_research.parallel.mesh import make_mesh
from lm_research.planning.workload import flops_per_row, make_workload
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, state_shardings, window_means
from lm_research.training.step import jit_train_step, make_train_step

NO_GPU, NOT_ALL = 2, 3  # exit codes
WARM_UP, SECONDS, ROUNDS = 3, 1.0, 3  # steps before timing; length and number of timed rounds
ROW_SECONDS = 50  # a row is begun only if so many are left


def measure(row: Row, tiny: bool) -> dict[str, Any]:
    """Compile and time the training step of a row; return its measurements."""
    config = make_config(row, tiny)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    jax.set_mesh(mesh)
    work = make_workload(config)
    optimizer, schedule = make_optimizer(config.optimizer), make_schedule(config)

    def new_state() -> Any:
        return init_state(work.definition, optimizer, config, work.objective)

    shardings = state_shardings(mesh, work.definition, jax.eval_shape(new_state))
    state = jax.jit(new_state, out_shardings=shardings)()
    step = make_train_step(work.objective, work.definition, optimizer, schedule, config)
    rows = make_batch(work.batch(config.train.batch_size, 1), work.definition.arch.vocab_size, row.documents)
    batch = to_global(mesh, rows, leading=1)
    begin = time.perf_counter()
    lowered = jit_train_step(step, shardings).lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    for _ in range(WARM_UP):
        state = compiled(state, batch)
    jax.block_until_ready(state)
    rates = []
    for _ in range(ROUNDS):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < (0.1 if tiny else SECONDS):
            for _ in range(1 if tiny else 5):
                state, count = compiled(state, batch), count + 1
            jax.block_until_ready(state["step"])
        rates.append(count / (time.perf_counter() - start))
    loss = window_means(work.objective, jax.device_get(state["window"]))["loss_nats"]
    per_step = config.train.batch_size * (work.tokens_per_row if row.unit == "tokens" else 1)
    flops = flops_per_row(work)
    used = (flops.layers + flops.attention + flops.head) * config.train.batch_size
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "rate": round(float(np.median(rates)) * per_step, 1),
        "lowest": round(min(rates) * per_step, 1),
        "highest": round(max(rates) * per_step, 1),
        "flops_per_second": float(np.median(rates)) * used,
        "trace_seconds": round(traced - begin, 2),
        "compile_seconds": round(compiled_at - traced, 2),
        "peak_gib": round(memory / 2**30, 2),
        "loss_nats": float(loss),
        "parameters": work.definition.num_params,
    }


def write(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Append a line, and print it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of an earlier start."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Format the lines as a Markdown table."""
    peak, _ = peak_flops()
    peak = peak and peak / jax.device_count()
    text = ["| row | per second (range) | goal | MFU | compile, s | GiB |", "|---|---|---|---|---|---|"]
    found = {line["row"]: line for line in lines}
    for row in ROWS:
        line = found.get(row.name, {"problem": "not begun"})
        goal = f"{row.goal:,.0f}" if row.goal else ""
        if "rate" not in line:
            text.append(f"| {row.name} | {line.get('problem', 'ended the process')} | {goal} | | | |")
            continue
        rates = f"{line['rate']:,.0f} {row.unit} ({line['lowest']:,.0f} to {line['highest']:,.0f})"
        mfu = f"{line['flops_per_second'] / peak:.1%}" if peak and jax.devices()[0].platform != "cpu" else ""
        text.append(
            f"| {row.name} | {rates} | {goal} | {mfu} | {line['compile_seconds']:.0f} | {line['peak_gib']:.1f} |"
        )
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that are missing and print the table; return 0 if none is left, NO_GPU or NOT_ALL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file of JSON lines")
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="time (seconds since 1970) at which no row begins"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, also on a CPU, to try the parts")
    args = parser.parse_args(argv)
    if jax.default_backend() != "gpu" and not args.tiny:
        print(
            f"JAX finds no GPU here, only {jax.devices()[0].device_kind}. The table needs one H100 or H200 and pip install 'jax[cuda13]'; "
            "nothing was measured. --tiny tries the parts with tiny shapes on any device.",
            file=sys.stderr,
        )
        return NO_GPU
    done = {line["row"] for line in read(args.output)}
    for row in ROWS:
        if row.name in done:
            continue
        if time.time() > args.until - ROW_SECONDS * (not args.tiny):
            break
        write(args.output, {"row": row.name, "device": jax.devices()[0].device_kind, "jax": jax.__version__})
        try:
            write(args.output, {"row": row.name, **measure(row, args.tiny)})
        except Exception as error:  # the next rows are worth their time
            write(args.output, {"row": row.name, "problem": f"{type(error).__name__}: {str(error)[:200]}"})
            if args.tiny:
                raise
    lines = read(args.output)
    print(table(lines))
    return 0 if {row.name for row in ROWS} <= {line["row"] for line in lines} else NOT_ALL


if __name__ == "__main__":
    sys.exit(main())

"""`python -m lm_research.plan --config=configs/gpt2_xl.py --topology=v5e:16x16`: the resources that a run needs.

Report the memory per device, the communication, the step time and the cost of a run on hardware that need not be available. Without
--compile the report is arithmetic (planning/estimate.py). With it the real training step is also compiled for the topology, and the
compiler's figures are printed next to the arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from lm_research import cli
from lm_research.common import flags
from lm_research.common.disk import describe_os_error, write_atomically
from lm_research.config import Config
from lm_research.errors import DONE, ConfigError

# Relative difference between the memory of the compiler and of the arithmetic above which the report warns.
TOLERANCE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.plan",
        description="Plan a run: memory, communication, time and cost on a topology. Takes --config and --config.SECTION.KEY like train. "
        "The model directory that the run starts from and the examples of a task are read for their shapes.",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", help="TPU slice: CHIP:SHAPE, for example v5e:16x16 or v5p:4x4x4")
    parser.add_argument("--hardware", help="machine with GPUs instead: CHIP:NUMBER, for example h200:8")
    parser.add_argument(
        "--slices", type=flags.bounded(int, 1, 10**5), default=1, help="number of slices or machines (1)"
    )
    parser.add_argument("--compile", action="store_true", help="also compile the step for the topology (needs libtpu)")
    parser.add_argument("--effort", choices=("low", "full"), default="full", help="compiler effort; low is much faster")
    parser.add_argument(
        "--search", action="store_true", help="rank all meshes, micro-batches and remat policies that fit"
    )
    parser.add_argument(
        "--scaling",
        type=flags.bounded(int, 1, 10**6),
        nargs="?",
        const=2048,
        metavar="CHIPS",
        help="also plan 1 to CHIPS (2,048) chips of this kind with as many sequences per device",
    )
    parser.add_argument("--price", type=flags.bounded(float, 0, 1e15), help="price of one chip-hour, in any currency")
    parser.add_argument("--json", type=flags.path, metavar="FILE", help="also write the plan to FILE as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, plan, argv, rest=True)


def plan(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make and print the plan; `rest` are the flags of the config.

    Raises:
      UserError: the config, the topology or their combination is impossible.
    """
    if bool(args.topology) == bool(args.hardware):
        raise ConfigError("Give either --topology=v5e:16x16 (a TPU slice) or --hardware=h200:8 (a machine with GPUs).")
    if args.search and args.scaling:
        raise ConfigError("--search ranks plans on one topology. Choose one of them and use --scaling with its keys.")
    if args.search and args.compile:
        raise ConfigError("--search ranks plans by arithmetic. Choose one of them and use --compile with its keys.")
    config, _ = cli.parse([*rest, f"--workdir={tempfile.gettempdir()}"])
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported, so that it leaves local accelerators alone
    from lm_research.parallel.precision import with_dtype
    from lm_research.planning import estimate, report, scaling, search
    from lm_research.planning.topology import parse_topology
    from lm_research.run.init_checkpoint import apply_init_checkpoint, load_init_checkpoint

    config = with_dtype(config, "tpu" if args.topology else "gpu")
    config = apply_init_checkpoint(load_init_checkpoint(config), config)
    topology = parse_topology(args.topology or args.hardware, args.slices)
    if args.search:
        plans = search.search(config, topology, args.price)
        print(report.ranking(plans))
        write(args.json, [dataclasses.asdict(one) for one in plans])
        return DONE
    result = estimate.plan_run(config, topology, args.price)
    print(report.table(result))
    values = dataclasses.asdict(result)
    if args.scaling:
        steps = list(scaling.scaling(config, topology, args.scaling))
        print("\n" + report.scaling_table(steps))
        values["scaling"] = [dataclasses.asdict(step.plan) for step in steps if step.plan]
    if args.compile:
        values["compiled"] = compile_too(config, topology, result.memory_bytes, args.effort)
    write(args.json, values)
    return DONE


def compile_too(config: Config, topology: Any, expected: float, effort: str) -> dict[str, Any]:
    """Compile the step, print the compiler's figures next to the arithmetic, and return them."""
    from lm_research.planning import compiled, report

    result = compiled.compile_step(config, topology, effort)
    print("\n" + report.compiled_table(result, expected, topology.device.hbm_bytes, TOLERANCE))
    return dataclasses.asdict(result)


def write(path: pathlib.Path | None, values: Any) -> None:
    """Write values as JSON if a path is given; raise a ConfigError if it cannot be written."""
    if path is None:
        return
    try:
        write_atomically(path, json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--json={path} cannot be written: {describe_os_error(error, path)}. Choose another file, or fix that."
        ) from error


if __name__ == "__main__":
    cli.start(main)

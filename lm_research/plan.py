"""`python -m lm_research.plan --config=configs/gpt2_xl.py --topology=v5e:16x16`: what a run needs, before it is paid for.

Says for a machine that need not be there how much memory a run takes per chip, what it sends, how long a step takes at best
and what the run costs. Without --compile it is arithmetic (planning/estimate.py); with it the real training step is
compiled for the topology as well, and the compiler's figures are laid beside.
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

# A step that the compiler and the arithmetic put so far apart in memory is said to be in dispute.
TOLERANCE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.plan",
        description="Plans a run: memory, traffic, time and cost on a topology. --config and --config.SECTION.KEY as in train. "
        "A model directory that it starts from, and the records of a task, are opened for their shapes.",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", help="TPU slice: CHIP:SHAPE, for example v5e:16x16 or v5p:4x4x4")
    parser.add_argument("--hardware", help="instead of it, a machine of GPUs: CHIP:NUMBER, for example h200:8")
    parser.add_argument(
        "--slices", type=flags.bounded(int, 1, 10**5), default=1, help="slices or machines, joined by the network (1)"
    )
    parser.add_argument("--compile", action="store_true", help="also compile the step for the topology (needs libtpu)")
    parser.add_argument("--effort", choices=("low", "full"), default="full", help="of the compiler; low is far faster")
    parser.add_argument("--search", action="store_true", help="try meshes, micro-batches and remat; rank what fits")
    parser.add_argument("--price", type=flags.bounded(float, 0, 1e15), help="of one chip for one hour, in any currency")
    parser.add_argument("--json", type=flags.path, metavar="FILE", help="write everything there as JSON too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    return cli.parsed(parser, plan, argv, rest=True)


def plan(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Does what the arguments say; `rest` are the flags of the config.

    Raises:
      UserError: the config, the topology or their combination is impossible.
    """
    if bool(args.topology) == bool(args.hardware):
        raise ConfigError("Give one of --topology=v5e:16x16 (a TPU slice) and --hardware=h200:8 (a machine of GPUs).")
    if args.search and args.compile:
        raise ConfigError("--search ranks plans by arithmetic. Pick one of them and give --compile with its keys.")
    config, _ = cli.parse([*rest, f"--workdir={tempfile.gettempdir()}"])
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is loaded: an accelerator that is here stays untouched
    from lm_research.planning import estimate, report, search
    from lm_research.planning.topology import parse_topology
    from lm_research.run.init_checkpoint import apply_init_checkpoint, load_init_checkpoint

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
    if args.compile:
        values["compiled"] = compile_too(config, topology, result.memory_bytes, args.effort)
    write(args.json, values)
    return DONE


def compile_too(config: Config, topology: Any, expected: float, effort: str) -> dict[str, Any]:
    """Compiles the step, prints what the compiler says beside the arithmetic, and returns it."""
    from lm_research.planning import compiled, report

    result = compiled.compile_step(config, topology, effort)
    print("\n" + report.compiled_table(result, expected, topology.chip.hbm_bytes, TOLERANCE))
    return dataclasses.asdict(result)


def write(path: pathlib.Path | None, values: Any) -> None:
    """JSON, if there is a path; raises a ConfigError if it cannot be written."""
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

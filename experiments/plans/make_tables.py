"""`python -m experiments.plans.make_tables`: what every shipped config needs on five TPU slices, by arithmetic; prints Markdown.

For each config, `plan --search` ranks meshes, remat policies and micro-batches; the table has the fastest plan that fits. Where a slice has
more chips than a batch has rows, the batch is raised to one row per chip, and the table shows it. Two giants, which have no config file
because few will train them as they are, use their families' smaller configs with the papers' sizes.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator

from lm_research.config import Config, loading, replace, resolve
from lm_research.errors import UserError
from lm_research.parallel.hardware import GIB
from lm_research.planning.estimate import ResourcePlan
from lm_research.planning.search import search
from lm_research.planning.topology import parse_topology

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v5p:8x8x16", "v6e:16x16")
HEAD = (
    "| config | batch | mesh | remat | micro-batches | GiB a device | collectives a step: number, GiB sent by a device | step, s | MFU | at best |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
GIANTS = {
    # Brown et al. 2020, table 2.1: 3.2M tokens a batch
    "GPT-3 175B": (
        "gpt3_small.py",
        dict(num_layers=96, hidden_size=12288, num_heads=96, intermediate_size=49152),
        1536,
    ),
    # Raffel et al. 2019, section 3.7: 128 heads of 128, feed-forward 65,536; 2^20 tokens a batch for the largest runs
    "T5-11B": (
        "t5_base.py",
        dict(variant="v1.0", num_layers=24, hidden_size=1024, num_heads=128, head_size=128, intermediate_size=65536),
        2048,
    ),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.plans.make_tables", description=__doc__)
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--only", default="", help="names of configs, with commas between; empty takes all")
    options = parser.parse_args(argv)
    topologies, only = options.topologies.split(","), set(filter(None, options.only.split(",")))
    tables: dict[str, list[str]] = {topology: [*HEAD] for topology in topologies}
    for label, config in configs():
        for topology in (
            topologies if not only or label in only else ()
        ):  # what is traced of a config serves all of them
            tables[topology].append(row(label, config, topology))
    for topology, lines in tables.items():
        print(f"\n### {topology}\n\n" + "\n".join(lines))
    return 0


def configs() -> Iterator[tuple[str, Config]]:
    """Return the name and config of each run, without the quick start, which is made for a laptop."""
    for path in sorted(CONFIGS.glob("*.py")):
        if path.name != "quickstart.py":
            yield path.stem, resolve(loading.load(str(path)))
    for name, (file, sizes, batch) in GIANTS.items():
        config = resolve(loading.load(str(CONFIGS / file)))
        yield name, replace(config, model=sizes, train={"batch_size": batch})


def row(label: str, config: Config, name: str) -> str:
    topology = parse_topology(name, 1)
    rows, chips = config.train.batch_size, topology.num_devices
    raised = max(rows, chips) if max(rows, chips) % chips == 0 else -(-rows // chips) * chips
    config = replace(config, train={"batch_size": raised})
    batch = f"{raised:,}" + ("" if raised == rows else f" (not {rows:,})")
    try:
        return f"| {label} | {batch} | {line(search(config, topology)[0])} |"
    except UserError as error:
        return f"| {label} | {batch} | does not fit: {str(error).partition('. ')[0]} | | | | | | | |"


def line(plan: ResourcePlan) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    count = sum(one.count for one in plan.collectives)
    moved = sum(one.link_bytes for one in plan.collectives) / GIB
    cells = [mesh, plan.remat, f"{plan.micro_batches}", f"{plan.memory_bytes / GIB:.1f}", f"{count:,}, {moved:.2f}"]
    return " | ".join([*cells, f"{plan.step_seconds:.3f}", f"{plan.mfu:.0%}", f"{plan.best_mfu:.0%}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

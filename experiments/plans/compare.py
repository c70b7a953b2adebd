"""`python -m experiments.plans.compare --out compared.tsv`: the plan's prediction beside the compiled program, for shipped configs.

Each row compiles a config for a topology (`lm_research.plan --compile`, which needs the extra `plan` but no TPU) in a process of its own
and is appended to the file when it is done, with the libtpu that compiled it and the commit. A second run continues with the rows that are
missing; `--only` and `--topologies` choose some. `--refresh` predicts again for the programs of the file, which takes seconds each. `--table`
prints the rows as Markdown, with the differences.

A program is read in two ways (lm_research/planning/reading.py): by roofs, which assume that every unit reaches its peak, and by the cycles that
the compiler estimates. The prediction has its rates from the same estimates, so it is compared with `calibrated`: the MFU by cycles, calibrated on
published speeds (lm_research/planning/calibration.py; those of v5e for every chip).
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_research.config import loading, resolve
from lm_research.planning.calibration import factors
from lm_research.planning.estimate import plan_run
from lm_research.planning.topology import parse_topology

ROOT = Path(__file__).resolve().parents[2]
# The quickest to compile come first.
CONFIGS = (
    "bert_base electra_small gpt2_small llama t5_base bert_large bart_base transformer_base gpt3_small roberta_base albert_base "
    "gpt2_medium"
).split()
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x2")
PREDICTED, READ = ("predicted", "best", "predicted_gib"), ("calibrated", "roof", "cycles", "peak_gib")
COLUMNS = ("config", "topology", "effort", "libtpu", "commit", *PREDICTED, *READ, "error")


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plans.compare", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "compared.tsv")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--only", default=",".join(CONFIGS), help="names of configs, with commas between")
    parser.add_argument("--effort", choices=("low", "full"), default="low")
    parser.add_argument("--refresh", action="store_true", help="predict again for the rows of the file")
    parser.add_argument("--table", action="store_true", help="print the file as a Markdown table instead")
    options = parser.parse_args(argv)
    found = rows(options.out)
    if options.table:
        print(table(found))
        return 0
    if options.refresh:
        write(options.out, [row | predicted(row["config"], row["topology"]) for row in found])
        return 0
    done = {(row["config"], row["topology"], row["effort"]) for row in found}
    for topology in options.topologies.split(","):
        for config in options.only.split(","):
            if (config, topology, options.effort) not in done:
                found.append(compare(config, topology, options.effort))
                write(options.out, found)
    return 0


def compare(config: str, topology: str, effort: str) -> dict[str, str]:
    """Plan and compile a config; a program that cannot be compiled gives a row with the error."""
    row = {"config": config, "topology": topology, "effort": effort, "libtpu": importlib.metadata.version("libtpu")}
    row |= {"commit": commit()} | predicted(config, topology)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "lm_research.plan", f"--config=configs/{config}.py", f"--topology={topology}"]
        command += ["--compile", f"--effort={effort}", f"--json={file}"]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            return row | {"error": last[:200].replace("\t", " ")}
        return row | read(json.loads(file.read_text())["compiled"])


def commit() -> str:
    """Return the commit of the checkout."""
    command = ["git", "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def predicted(config: str, topology: str) -> dict[str, str]:
    """Return the predicted MFU, that at best, and the memory in GiB."""
    plan = plan_run(resolve(loading.load(str(ROOT / "configs" / f"{config}.py"))), parse_topology(topology))
    return fractions(PREDICTED, (plan.mfu, plan.best_mfu, plan.memory_bytes / 2**30))


def read(compiled: dict[str, Any]) -> dict[str, str]:
    """Return the MFU of a program, and its peak memory in GiB."""
    factor, cycles = factors("v5e"), compiled["cycles_mfu"]
    assert factor is not None
    return fractions(READ, (cycles * factor.cycles, compiled["roof_mfu"], cycles, compiled["peak_bytes"] / 2**30))


def fractions(names: Sequence[str], values: Sequence[float]) -> dict[str, str]:
    """Format numbers as cells of the file."""
    return {name: f"{value:.4f}" for name, value in zip(names, values, strict=True)}


def rows(path: Path) -> list[dict[str, str]]:
    """Read the file; an absent one has no rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write(path: Path, found: Sequence[dict[str, str]]) -> None:
    """Write the file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(found)


def table(found: Sequence[dict[str, str]]) -> str:
    """Format rows as Markdown; the difference is that of the predicted MFU from the calibrated one."""
    lines = [
        "| config | topology | predicted | calibrated | difference | roof | cycles | at best | GiB predicted, compiled |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        if row["error"]:
            lines.append(f"| {row['config']} | {row['topology']} | {row['error']} | | | | | | |")
            continue
        percent = {name: f"{float(row[name]):.1%}" for name in ("predicted", "best", "calibrated", "roof", "cycles")}
        difference = float(row["predicted"]) / float(row["calibrated"]) - 1
        cells = [row["config"], row["topology"], percent["predicted"], percent["calibrated"], f"{difference:+.0%}"]
        cells += [percent["roof"], percent["cycles"], percent["best"]]
        cells.append(f"{float(row['predicted_gib']):.2f}, {float(row['peak_gib']):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

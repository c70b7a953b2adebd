"""`python -m experiments.plans.compare --out compared.tsv`: the plan's prediction beside the compiled program, for shipped configs.

Each row compiles a config for a topology (`lm_research.plan --compile`, which needs the extra `plan` but no TPU) in a process of its own
and is appended to the file when it is done. A second run continues with the rows that are missing; `--only` and `--topologies` choose
some. `--table` prints the rows as Markdown, with the differences.

A program is read in two ways (lm_research/planning/reading.py): by roofs, which assume that every unit reaches its peak, and by the cycles that
the compiler estimates. The prediction has its rates from the same estimates, so it is compared with `calibrated`: the MFU by cycles, calibrated on
published speeds (lm_research/planning/calibration.py; those of v5e for every chip).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lm_research.planning.calibration import factors

ROOT = Path(__file__).resolve().parents[2]
# The quickest to compile come first.
CONFIGS = (
    "bert_base electra_small gpt2_small llama t5_base bert_large bart_base transformer_base gpt3_small roberta_base albert_base "
    "gpt2_medium"
).split()
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x2")
COLUMNS = (
    "config",
    "topology",
    "effort",
    "predicted",
    "best",
    "calibrated",
    "roof",
    "cycles",
    "predicted_gib",
    "peak_gib",
    "error",
)


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plans.compare", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "compared.tsv")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--only", default=",".join(CONFIGS), help="names of configs, with commas between")
    parser.add_argument("--effort", choices=("low", "full"), default="low")
    parser.add_argument("--table", action="store_true", help="print the file as a Markdown table instead")
    options = parser.parse_args(argv)
    if options.table:
        print(table(rows(options.out)))
        return 0
    done = {(row["config"], row["topology"], row["effort"]) for row in rows(options.out)}
    for topology in options.topologies.split(","):
        for config in options.only.split(","):
            if (config, topology, options.effort) not in done:
                append(options.out, compare(config, topology, options.effort))
    return 0


def compare(config: str, topology: str, effort: str) -> dict[str, Any]:
    """Plan and compile a config; a program that cannot be compiled gives a row with the error."""
    row: dict[str, Any] = {"config": config, "topology": topology, "effort": effort}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "lm_research.plan", f"--config=configs/{config}.py", f"--topology={topology}"]
        command += ["--compile", f"--effort={effort}", f"--json={file}"]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            return row | {"error": last[:200].replace("\t", " ")}
        return row | figures(json.loads(file.read_text()))


def figures(plan: dict[str, Any]) -> dict[str, str]:
    """MFU as fractions, and memory in GiB, of a plan and of its program."""
    compiled, factor = plan["compiled"], factors("v5e")
    assert factor is not None
    values = {
        "predicted": plan["mfu"],
        "best": plan["best_mfu"],
        "calibrated": compiled["cycles_mfu"] * factor.cycles,
        "roof": compiled["roof_mfu"],
        "cycles": compiled["cycles_mfu"],
        "predicted_gib": plan["memory_bytes"] / 2**30,
        "peak_gib": compiled["peak_bytes"] / 2**30,
    }
    return {name: f"{value:.4f}" for name, value in values.items()}


def rows(path: Path) -> list[dict[str, str]]:
    """Read the file; an absent one has no rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row, with a header if it is the first."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def table(found: list[dict[str, str]]) -> str:
    """Format rows as Markdown; the difference is that of the predicted MFU from the calibrated one."""
    lines = [
        "| config | topology | predicted | calibrated | difference | roof | cycles | at best | GiB predicted, compiled |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        if row["error"]:
            lines.append(f"| {row['config']} | {row['topology']} | {row['error']} | | | | | | |")
            continue
        percent = {name: f"{float(row[name]):.1%}" for name in COLUMNS[3:8]}
        difference = float(row["predicted"]) / float(row["calibrated"]) - 1
        cells = [
            row["config"],
            row["topology"],
            percent["predicted"],
            percent["calibrated"],
            f"{difference:+.0%}",
            percent["roof"],
        ]
        cells += [
            percent["cycles"],
            percent["best"],
            f"{float(row['predicted_gib']):.2f}, {float(row['peak_gib']):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m lm_research.compare A B [--assert-equal]`: compare two runs.

Print the differences between two run directories: their configs, the first step at which their metrics differ, and the digests of
their final parameters and optimizer state. Runs are equal if they are equal to the last bit: metrics.jsonl stores numbers at full
precision. The exit code is 0; with --assert-equal it is 1 if metrics, status, steps or digests differ; it is 2 for a directory without
a run that has ended. A run that was paused or stopped is compared up to its last step.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_research import cli
from lm_research.common import flags
from lm_research.common.paths import FILE, FOLDER, NOTHING, kind
from lm_research.config import run_files
from lm_research.errors import BUG, DONE, CheckpointError

# Keys that cannot change the results of a run, although they may change its files.
_HARMLESS = ("logging.", "checkpoint.", "profile.", "eval.num_samples", "data.cache_dir")
_ABSENT = "(absent)"
_DIFFERENT = BUG  # 1, as `cmp` and `diff` return


@dataclasses.dataclass(frozen=True)
class Run:
    """Files of a finished run: flat config, metrics by step, summary."""

    config: dict[str, Any]
    metrics: dict[int, dict[str, Any]]
    summary: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(prog="python -m lm_research.compare", description="Compare two runs that have ended.")
    parser.add_argument("a", type=flags.path, metavar="A", help="directory of a run")
    parser.add_argument("b", type=flags.path, metavar="B", help="directory of another run")
    parser.add_argument(
        "--assert-equal",
        action="store_true",
        help="exit with 1 if metrics by step, status, steps or digests differ",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")

    def compare(arguments: argparse.Namespace) -> int:
        a, b = load(arguments.a), load(arguments.b)
        print(f"A  {arguments.a}{ended(a)}\nB  {arguments.b}{ended(b)}")
        equal = report(a, b)
        print("\nThe runs are equal." if equal else "\nThe runs differ.")
        return DONE if equal or not arguments.assert_equal else _DIFFERENT

    return cli.parsed(parser, compare, argv)


def report(a: Run, b: Run) -> bool:
    """Print the differences between two runs; return whether metrics by step, status, steps and digests are equal."""
    config = differences(a.config, b.config)
    harmless = [key for key in config if key.startswith(_HARMLESS)]
    title = "none" if not config else f"{len(config)} differ"
    _table("Config", title, [(key, *config[key], "no effect" if key in harmless else "") for key in config])

    metrics = _report_metrics(a, b, only_evaluations="logging.every_steps" in config)

    summary = differences(_verdicts(a.summary), _verdicts(b.summary))
    same = sorted(set(_verdicts(a.summary)) - set(summary))
    rows = [(key, _verdicts(a.summary)[key], "same", "") for key in same]
    _table("End", "same" if not summary else f"{len(summary)} differ", rows + [(k, *summary[k], "") for k in summary])
    return metrics and not summary


def _report_metrics(a: Run, b: Run, only_evaluations: bool) -> bool:
    """Print the differences between metrics; return whether there are none.

    With `only_evaluations`, training metrics are skipped: they are means since the previous line, so they are comparable only between
    runs with the same logging.every_steps.
    """
    left, right = (_evaluations(run.metrics) if only_evaluations else run.metrics for run in (a, b))
    steps = sorted(left.keys() | right.keys())
    differing = {step: differences(left.get(step, {}), right.get(step, {})) for step in steps}
    differing = {step: found for step, found in differing.items() if found}
    name = "Metrics of evaluations (logging.every_steps differs)" if only_evaluations else "Metrics"
    if not differing:
        values = sum(len(line) for line in left.values())
        _table(name, f"same: {values} values, steps {steps[0]} to {steps[-1]}" if steps else "none", [])
        return True
    first = next(iter(differing))
    title = f"first difference at step {first}; {len(differing)} of {len(steps)} logged steps differ"
    _table(name, title, [(key, *pair, _distance(*pair)) for key, pair in differing[first].items()])
    return False


def _evaluations(metrics: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    lines = {step: {k: v for k, v in line.items() if k.startswith("eval_")} for step, line in metrics.items()}
    return {step: line for step, line in lines.items() if line}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ (NaN equals NaN), with both values, sorted by key."""
    pairs = {key: (a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in sorted(a.keys() | b.keys())}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return not differences(a, b)
    return a == b or (a != a and b != b)


def is_timing(key: str) -> bool:
    """Return whether a metric is a time or a memory size, which differs between any two runs, rather than a result."""
    return (
        key in ("mfu", "goodput", "data_process")
        or "_seconds" in key
        or key.endswith("per_second")
        or key.startswith(("peak_", "host_"))
    )


def ended(run: Run) -> str:
    """Describe how a run ended if it is not finished."""
    status = run.summary["status"]
    return "" if status == "finished" else f"  ({status} after step {run.summary['step']})"


def load(directory: Path) -> Run:
    """Read a run directory.

    Raises:
      CheckpointError: it is missing, its run has not ended, or a file in it is damaged.
    """
    if (found := kind(directory)) != FOLDER:
        why = "" if found in (FILE, NOTHING) else f": it is {found}"
        raise CheckpointError(f"{directory} is not a directory{why}. Give the --workdir of a finished run.")
    if kind(directory / "config.json") != FILE:
        raise CheckpointError(f"{directory} has no config.json, so it is not a run directory. Give a run's --workdir.")
    if not kind(directory / "summary.json"):
        raise CheckpointError(
            f"{directory} has no summary.json: its run has not finished. Resume it with the same command."
        )
    summary = run_files.read_summary(directory)
    lacking = [key for key in ("status", "step", "digests") if summary.get(key) in (None, "", {})]
    if lacking:
        raise CheckpointError(
            f"{directory / 'summary.json'} lacks {', '.join(lacking)}, which are written when a run ends. "
            "Resume the run with the same command."
        )
    metrics = _read_metrics(directory / "metrics.jsonl")
    if metrics and summary["step"] < (last := max(metrics)):
        raise CheckpointError(
            f"{directory / 'summary.json'} is of step {summary['step']}, but metrics.jsonl extends to step {last}: the run was resumed and "
            "has not ended since. Resume it with the same command."
        )
    return Run(run_files.read_keys(directory / "config.json"), metrics, summary)


def _read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """Read metrics by step, without timings. Lines of one step are merged; if a step was repeated, the last line counts."""
    metrics: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(run_files.read_text(path).splitlines(), start=1):
        try:
            values = run_files.line_of(line)
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: not a JSON object with a step and numbers ({error}). Fix or remove that line."
            ) from error
        step = values.pop("step")
        metrics.setdefault(step, {}).update({key: value for key, value in values.items() if not is_timing(key)})
    return metrics


def _verdicts(summary: Mapping[str, Any]) -> dict[str, Any]:
    digests = {f"digest of {name}": value for name, value in summary["digests"].items()}
    return {"status": summary["status"], "step": summary["step"], **digests}


def _distance(a: Any, b: Any) -> str:
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return ""
    scale = max(abs(a), abs(b))
    return f"{abs(a - b) / scale:.1e} relative" if scale else ""


def _table(name: str, title: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Print a heading and rows of (key, A, B, remark) in aligned columns."""
    print(f"\n{name}: {title}")
    cells = [[str(cell) for cell in row] for row in rows]
    for line in _aligned([["", "A", "B", ""], *cells] if cells else []):
        print(line)


def _aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


if __name__ == "__main__":
    cli.start(main)

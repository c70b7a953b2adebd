"""Are two runs the same? `python -m lm_research.compare A B [--assert-equal]`.

Lays two run directories side by side: their configs, the first step at which their metrics part, and the digests of
their final parameters and optimizer. Equal means equal to the last bit: metrics.jsonl holds every number in full.
Exit code 0; with --assert-equal 1 where metrics, status, steps or digests differ; 2 for a directory without a
run that has ended. One that was paused or stopped is compared as far as it came.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_research import cli
from lm_research.common import flags
from lm_research.common.paths import FILE, FOLDER, kind
from lm_research.config import run_files
from lm_research.errors import BUG, DONE, CheckpointError

# Config that cannot change what a run computes; it may well change what it writes down.
_HARMLESS = ("logging.", "checkpoint.", "profile.", "eval.num_samples", "data.cache_dir")
_ABSENT = "(absent)"
_DIFFERENT = BUG  # 1, as `cmp` and `diff` return


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run wrote down: flat config, metrics by step, summary."""

    config: dict[str, Any]
    metrics: dict[int, dict[str, Any]]
    summary: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.compare", description="Lays two runs that have ended side by side."
    )
    parser.add_argument("a", type=flags.path, metavar="A", help="directory of a run")
    parser.add_argument("b", type=flags.path, metavar="B", help="directory of another")
    parser.add_argument(
        "--assert-equal",
        action="store_true",
        help="exit with 1 where metrics by step, status, steps or digests differ",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

    def compare(arguments: argparse.Namespace) -> int:
        a, b = load(arguments.a), load(arguments.b)
        print(f"A  {arguments.a}{ended(a)}\nB  {arguments.b}{ended(b)}")
        equal = report(a, b)
        print("\nThe runs are equal." if equal else "\nThe runs differ.")
        return DONE if equal or not arguments.assert_equal else _DIFFERENT

    return cli.parsed(parser, compare, argv)


def report(a: Run, b: Run) -> bool:
    """Prints how two runs differ; True when metrics by step, status, steps and digests are the same."""
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
    """Print where metrics differ.

    `only_evaluations`: training lines are means since the line before, so they can be compared only between runs that log equally often.
    """
    left, right = (_evaluations(run.metrics) if only_evaluations else run.metrics for run in (a, b))
    steps = sorted(left.keys() | right.keys())
    parted = {step: differences(left.get(step, {}), right.get(step, {})) for step in steps}
    parted = {step: found for step, found in parted.items() if found}
    name = "Metrics of evaluations (logging.every_steps differs)" if only_evaluations else "Metrics"
    if not parted:
        values = sum(len(line) for line in left.values())
        _table(name, f"same: {values} values, steps {steps[0]} to {steps[-1]}" if steps else "none", [])
        return True
    first = next(iter(parted))
    title = f"part at step {first}; {len(parted)} of {len(steps)} logged steps differ"
    _table(name, title, [(key, *pair, _distance(*pair)) for key, pair in parted[first].items()])
    return False


def _evaluations(metrics: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    lines = {step: {k: v for k, v in line.items() if k.startswith("eval_")} for step, line in metrics.items()}
    return {step: line for step, line in lines.items() if line}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values are not the same (NaN is the same as NaN), with both values, sorted by key."""
    pairs = {key: (a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in sorted(a.keys() | b.keys())}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return not differences(a, b)
    return a == b or (a != a and b != b)


def is_timing(key: str) -> bool:
    """Whether a metric says how fast or heavy a run was, which no two runs share, rather than what it computed."""
    return (
        key in ("mfu", "goodput", "data_process")
        or "_seconds" in key
        or key.endswith("per_second")
        or key.startswith(("peak_", "host_"))
    )


def ended(run: Run) -> str:
    """How a run ended, if it was before its end."""
    status = run.summary["status"]
    return "" if status == "finished" else f"  ({status} after step {run.summary['step']})"


def load(directory: Path) -> Run:
    """Reads a run directory.

    Raises:
      CheckpointError: it is missing, its run has not finished, or a file in it is damaged.
    """
    if kind(directory) != FOLDER:
        raise CheckpointError(f"{directory} is not a directory. Give the --workdir of a finished run.")
    if kind(directory / "config.json") != FILE:
        raise CheckpointError(f"{directory} has no config.json, so it is no run directory. Give a run's --workdir.")
    if not kind(directory / "summary.json"):
        raise CheckpointError(
            f"{directory} has no summary.json: its run has not finished. Start it again with the same command, which "
            "resumes it."
        )
    summary = run_files.read_summary(directory)
    lacking = [key for key in ("status", "step", "digests") if summary.get(key) in (None, "", {})]
    if lacking:
        raise CheckpointError(
            f"{directory / 'summary.json'} lacks {', '.join(lacking)}, the mark of a run's end. "
            "Run it again to its end."
        )
    metrics = _read_metrics(directory / "metrics.jsonl")
    if metrics and summary["step"] < (last := max(metrics)):
        raise CheckpointError(
            f"{directory / 'summary.json'} is of step {summary['step']}, and metrics.jsonl goes on to step {last}: the run went on after it "
            "and has not ended since. Start it again with the same command, which resumes it."
        )
    return Run(run_files.read_keys(directory / "config.json"), metrics, summary)


def _read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """Metrics by step, without timings. Lines of one step are joined; of a step done again the last counts."""
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
    """Prints a heading and rows of (key, A, B, remark) in aligned columns."""
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

"""`python -m experiments.table runs/STUDY [--metrics=NAME,NAME] [--across=KEY]`: a study as a Markdown table.

The table has a row for each point, over its seeds: mean ± standard deviation of the sample, and the number of runs. Metrics are those in a
trial's summary.json (`eval_loss_nats`, `tokens_per_second`, ...), by default the study's own; `seconds` is the time of the whole run.
--across=KEY makes a column of each value of one key, for one metric. The best mean of the study's own metric is bold (in its column, or in
the whole table with --across).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from lm_research import cli
from lm_research.common import flags
from lm_research.common.documents import is_finite
from lm_research.config import run_files
from lm_research.errors import DONE, CheckpointError, ConfigError
from lm_research.reporting.studies import Study, read_study

Point = tuple[tuple[str, Any], ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m experiments.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=flags.path, help="folder with study.json")
    parser.add_argument("--metrics", default="", help="metrics of summary.json, separated by commas (the study's own)")
    parser.add_argument("--across", default="", help="key whose values become columns")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")

    def show(options: argparse.Namespace) -> int:
        study = read_study(options.study)
        print(table(study, [name for name in options.metrics.split(",") if name], options.across))
        return DONE

    return cli.parsed(parser, show, argv)


def table(study: Study, metrics: Sequence[str] = (), across: str = "") -> str:
    """Return the study as a Markdown table.

    Raises:
      ConfigError: there are no trials, the key or a metric does not exist, or `across` is given with several metrics.
    """
    metrics = list(metrics) or [study.metric]
    if not any(trial["params"] for trial in study.trials):
        raise ConfigError(f"{study.directory} has no trials yet. Run the study first.")
    if across and (across not in study.parameters or len(metrics) > 1):
        raise ConfigError(
            f"--across={across} must be one of {', '.join(study.parameters)}, with exactly one metric (there are {len(metrics)})."
        )
    groups: dict[Point, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for trial in study.trials:
        if (
            trial.get("run") in seen or not trial["params"]
        ):  # the run of an earlier trial; or a trial that was only just created
            continue
        seen.add(trial.get("run"))
        point = tuple((key, value) for key, value in trial["params"].items() if key != "seed" or across == "seed")
        groups.setdefault(point, []).append(values_of(study, trial))
    available = {name for values in groups.values() for one in values for name in one}
    for name in metrics:
        if available and name not in available:
            raise ConfigError(f"The trials have no metric {name!r}. They have {', '.join(sorted(available))}.")
    cells = {
        (point, name): [one[name] for one in values if name in one]
        for point, values in groups.items()
        for name in metrics
    }
    best = best_mean(cells, study)
    written = {}
    for (point, name), numbers in cells.items():
        bold = bool(numbers) and name == study.metric and statistics.fmean(numbers) == best
        written[point, name] = cell(numbers, groups[point], bold)
    if across:
        return _pivot(written, metrics[0], across)
    keys = [key for key, _ in next(iter(groups))]
    lines = [[*keys, *metrics], ["---"] * (len(keys) + len(metrics))]
    lines += [[*(_text(value) for _, value in point), *(written[point, name] for name in metrics)] for point in groups]
    return _markdown(lines)


def values_of(study: Study, trial: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a trial; empty unless it is finished."""
    if trial["state"] != "complete":
        return {}
    found = {study.metric: float(trial["value"])} if is_finite(trial["value"]) else {}
    try:
        summary = run_files.read_summary(study.directory / trial.get("run", ""))
    except CheckpointError:
        return found  # study.json has the study's own metric
    seconds = summary.get("seconds") or {}
    numbers = {**(summary.get("train") or {}), **(summary.get("eval") or {}), "seconds": sum(seconds.values())}
    return {name: float(v) for name, v in numbers.items() if is_finite(v) and abs(v) < 2**63} | found


def best_mean(cells: dict[tuple[Point, str], list[float]], study: Study) -> float | None:
    """Return the best mean of the study's own metric, or None without any."""
    means = [statistics.fmean(numbers) for (_, name), numbers in cells.items() if numbers and name == study.metric]
    return (max if study.maximize else min)(means, default=None)


def cell(numbers: list[float], runs: list[dict[str, float]], bold: bool) -> str:
    """Format values as `**3.214 ± 0.013** (3)`; unfinished runs are counted; `-` marks a metric that the runs do not have."""
    total = len(runs)
    if not numbers:
        return "-" if any(runs) else f"none of {total} finished"
    mean, spread = statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    whole = all(number.is_integer() for number in numbers)
    plain = whole and mean.is_integer() and spread.is_integer()
    digits = 0 if plain or abs(mean) >= 1000 else 1 if whole or abs(mean) >= 100 else 4
    text = f"{mean:,.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {spread:,.{digits}f}"
    text = f"**{text}**" if bold else text
    return f"{text} ({len(numbers)}{'' if len(numbers) == total else f' of {total}'})" if total > 1 else text


def _pivot(written: dict[tuple[Point, str], str], metric: str, across: str) -> str:
    rows: dict[Point, dict[str, str]] = {}
    columns: dict[str, Any] = {}
    for (point, _), text in written.items():
        value = dict(point)[across]
        columns[_text(value)] = value
        rows.setdefault(tuple(pair for pair in point if pair[0] != across), {})[_text(value)] = text
    numeric = all(isinstance(value, int | float) for value in columns.values())
    ordered = sorted(columns, key=lambda text: columns[text]) if numeric else list(columns)
    keys = [key for key, _ in next(iter(rows))]
    lines = [
        [*keys, *(f"{across.rpartition('.')[2]} {text}" for text in ordered)],
        ["---"] * (len(keys) + len(ordered)),
    ]
    lines += [
        [*(_text(value) for _, value in row), *(cells.get(text, "") for text in ordered)] for row, cells in rows.items()
    ]
    return f"{metric}:\n\n" + _markdown(lines)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    cli.start(main)

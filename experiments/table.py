"""`python -m experiments.table runs/STUDY [--metrics=NAME,NAME] [--across=KEY]`: a study as a Markdown table.

A row for each point, over its seeds: mean +- standard deviation of a sample, and how many runs there were. Metrics are those of a
trial's summary.json (`eval_loss_nats`, `tokens_per_second`, ...), by default the one that the study is judged by; `seconds` is the
time of all of a run. --across=KEY sets the values of one key side by side, for one metric. The best mean of a column (of the whole table
with --across) is bold where the metric is the study's.
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
    """The command; returns the exit code."""
    parser = flags.Parser(
        prog="python -m experiments.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=flags.path, help="folder with study.json")
    parser.add_argument("--metrics", default="", help="of summary.json, with commas between (the study's own)")
    parser.add_argument("--across", default="", help="key whose values become columns")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")

    def show(options: argparse.Namespace) -> int:
        study = read_study(options.study)
        print(table(study, [name for name in options.metrics.split(",") if name], options.across))
        return DONE

    return cli.parsed(parser, show, argv)


def table(study: Study, metrics: Sequence[str] = (), across: str = "") -> str:
    """The table.

    Raises:
      ConfigError: there are no trials, no such key or metric, or several metrics with `across`.
    """
    metrics = list(metrics) or [study.metric]
    if not any(trial["params"] for trial in study.trials):
        raise ConfigError(f"{study.directory} has no trials yet. Let the study run first.")
    if across and (across not in study.parameters or len(metrics) > 1):
        raise ConfigError(
            f"--across={across} must be one of {', '.join(study.parameters)}, and there must be one metric (there are {len(metrics)})."
        )
    groups: dict[Point, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for trial in study.trials:
        if trial.get("run") in seen or not trial["params"]:  # the same run as another trial's; or asked for just now
            continue
        seen.add(trial.get("run"))
        point = tuple((key, value) for key, value in trial["params"].items() if key != "seed" or across == "seed")
        groups.setdefault(point, []).append(values_of(study, trial))
    known = {name for values in groups.values() for one in values for name in one}
    for name in metrics:
        if known and name not in known:
            raise ConfigError(f"The trials have no metric {name!r}. They have {', '.join(sorted(known))}.")
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
    """Metrics of a finished trial; none of another."""
    if trial["state"] != "complete":
        return {}
    found = {study.metric: float(trial["value"])} if is_finite(trial["value"]) else {}
    try:
        summary = run_files.read_summary(study.directory / trial.get("run", ""))
    except CheckpointError:
        return found  # what study.json has is enough for the study's own metric
    seconds = summary.get("seconds") or {}
    numbers = {**(summary.get("train") or {}), **(summary.get("eval") or {}), "seconds": sum(seconds.values())}
    return {name: float(v) for name, v in numbers.items() if is_finite(v) and abs(v) < 2**63} | found


def best_mean(cells: dict[tuple[Point, str], list[float]], study: Study) -> float | None:
    """The best mean of the study's own metric."""
    means = [statistics.fmean(numbers) for (_, name), numbers in cells.items() if numbers and name == study.metric]
    return (max if study.maximize else min)(means, default=None)


def cell(numbers: list[float], runs: list[dict[str, float]], bold: bool) -> str:
    """Format values as `**3.214 ± 0.013** (3)`; unfinished runs are counted, and `-` is a metric that they do not have."""
    asked = len(runs)
    if not numbers:
        return "-" if any(runs) else f"none of {asked} finished"
    mean, spread = statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    whole = all(number.is_integer() for number in numbers)
    plain = whole and mean.is_integer() and spread.is_integer()
    digits = 0 if plain or abs(mean) >= 1000 else 1 if whole or abs(mean) >= 100 else 4
    text = f"{mean:,.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {spread:,.{digits}f}"
    text = f"**{text}**" if bold else text
    return f"{text} ({len(numbers)}{'' if len(numbers) == asked else f' of {asked}'})" if asked > 1 else text


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

"""Contents of a report's page as plain values: tables and the data of charts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_research.common.paths import kind
from lm_research.errors import UserError
from lm_research.reporting import curves, scaling
from lm_research.reporting.runs import Run, name_of, named, names_of, read_run
from lm_research.reporting.studies import FILE, Study, read_study
from lm_research.run.run_directory import FREE_KEYS

MAX_TRIALS = 12  # per study: curves are drawn of the best trials
MAX_SAMPLES = 12  # per run: evaluations whose samples are shown
# Keys that change only a run's output or its random draws: runs that differ only in these are repetitions.
_REPETITION = (*FREE_KEYS, "seed", "logging.")
# Final metrics that come first in a summary.
_LEADING = (
    *("loss_nats", "eval_loss_nats", "eval_mlm_loss_nats", "eval_lm_loss_nats"),
    *("eval_perplexity", "eval_bits_per_byte"),
)
_RATES = ("tokens_per_second", "mfu", "goodput")


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Data of a report.

    Attributes:
      runs: runs with curves and a column in tables.
      all_runs: these and the other trials of studies, for scaling laws and standard deviations.
      studies: the studies.
      titles: unique titles of the studies.
      notes: sentences about what was left out.
    """

    runs: list[Run]
    all_runs: list[Run]
    studies: list[Study]
    titles: list[str]
    notes: list[str]


def gather_report(paths: Sequence[Path]) -> ReportData:
    """Read the runs and studies in folders.

    Raises:
      UserError: a folder is neither, or a study.json cannot be read.
    """
    studies = [read_study(path) for path in dict.fromkeys(paths) if kind(path / FILE)]
    titles = names_of([study.directory for study in studies])
    runs = named([path for path in paths if not kind(path / FILE)])
    all_runs, notes = list(runs), list[str]()
    for study, title in zip(studies, titles, strict=True):
        drawn, others = trial_runs(study, f"{title}: " if len(studies) > 1 else "", notes)
        runs += drawn
        all_runs += drawn + others
    return ReportData(runs, all_runs, studies, titles, notes)


def trial_runs(study: Study, prefix: str, notes: list[str]) -> tuple[list[Run], list[Run]]:
    """Read the runs of a study's trials.

    Args:
      study: the study.
      prefix: start of the runs' names.
      notes: receives sentences about trials without curves.

    Returns:
      (runs of the best MAX_TRIALS trials, other runs).
    """
    trials, runs, unreadable = study.trials, {}, []
    if len(trials) > MAX_TRIALS:
        trials = study.ranked
    if len(trials) > MAX_TRIALS:
        notes.append(f"{study.directory}: curves of the best {MAX_TRIALS} of {len(study.trials)} trials.")
    for trial in trials:
        if trial.get("run") in runs:  # trials of one configuration share a run
            continue
        directory = study.directory / str(trial.get("run") or "")
        measured = trial in study.measured  # for any other trial, the table shows why it has no run
        if trial.get("run") and (measured or kind(directory / "config.json")):
            try:
                runs[trial["run"]] = read_run(directory, prefix + study.label(trial))
            except UserError as error:
                unreadable.append((trial["number"], error))
    if unreadable:
        numbers = ", ".join(str(number) for number, _ in unreadable)
        notes.append(f"No curves of trials {numbers}, whose runs cannot be read; the first because: {unreadable[0][1]}")
    read = list(runs.values())
    return read[:MAX_TRIALS], read[MAX_TRIALS:]


def final_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return a value per run for each heading: status, step, size, resources and final metrics; None if unknown."""
    table: dict[str, list[Any]] = {
        "status": [run.status for run in runs],
        "step": [run.step for run in runs],
        "parameters": [run.parameters for run in runs],
        "tokens": [curves.total(run.lines, "tokens") if run.lines else None for run in runs],
        "FLOPs": [curves.total(run.lines, "flops") if run.lines else None for run in runs],
        "hours in all": [sum(run.seconds.values()) / 3600 or None for run in runs],
    }
    for key in final_metrics(runs):
        table[key] = [run.final.get(key) for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.digests):
        table[f"digest of {name}"] = [run.digests.get(name) for run in runs]
    return {heading: values for heading, values in table.items() if any(value is not None for value in values)}


def final_metrics(runs: Sequence[Run]) -> list[str]:
    """Return the names of metrics in a summary: losses, then scores of held-out and test data, then rates."""
    names = dict.fromkeys(key for run in runs for key in run.final)
    scores = [key for key in names if key.startswith(("eval_", "test_")) and key not in ("eval_seconds", "eval_tokens")]
    return [key for key in dict.fromkeys([*_LEADING, *scores, *_RATES]) if key in names]


def spreads(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return means and standard deviations over finished runs that differ only in the seed.

    Returns:
      For each group of runs {"runs": names, "metrics": {name: (mean, standard deviation of the sample, over n - 1)}}.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status == "finished":
            groups.setdefault(_recipe(run), []).append(run)
    found = []
    for group in groups.values():
        if len({json.dumps(run.config.get("seed")) for run in group}) < 2:
            continue
        metrics = {}
        for key in final_metrics(group):
            values = [value for run in group if isinstance(value := run.final.get(key), int | float)]
            if len(values) == len(group):
                metrics[key] = (float(np.mean(values)), float(np.std(values, ddof=1)))
        found.append({"runs": [run.name for run in group], "metrics": metrics})
    return found


def config_table(runs: Sequence[Run]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return (keys whose values differ among the runs -> a value per run, other keys -> their common value)."""
    keys = sorted({key for run in runs for key in run.config})
    columns = {key: [run.config.get(key, "(absent)") for run in runs] for key in keys}
    same = {key: values[0] for key, values in columns.items() if all(_json(v) == _json(values[0]) for v in values)}
    return {key: values for key, values in columns.items() if key not in same}, same


def scaling_law(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Fit a scaling law to the finished runs.

    The loss is the final held-out loss per token: that of the masked or predicted token, without other objectives' terms.

    Returns:
      The law and the data of its chart; {"refusal": reason} if it cannot be fitted; None if all runs have one size.
    """
    sizes = [run for run in runs if run.parameters]
    if len({run.parameters for run in sizes}) < 2:
        return None
    used, points = [], []
    for run in sizes:
        loss = next(
            (run.final[k] for k in ("eval_mlm_loss_nats", "eval_lm_loss_nats", "eval_loss_nats") if k in run.final),
            None,
        )
        tokens = curves.total(run.lines, "tokens") if run.lines else None
        if run.status == "finished" and loss is not None and tokens:
            used.append(run)
            points.append((float(run.parameters or 0), tokens, loss))
    left_out = [run.name for run in sizes if run not in used]
    used, points, notes = _best_of_each(used, points)
    for key in ("objective.name", "data.source", "data.max_length", "tokenizer.vocab_size", "tokenizer.path"):
        if len({_json(run.config.get(key)) for run in used}) > 1:
            return {"refusal": f"No scaling law: the runs differ in {key}, so their losses are not on one curve."}
    law = scaling.fit(points)
    if isinstance(law, str):
        return {"refusal": law + (f" Left out as unfinished: {', '.join(left_out)}." if left_out else "")}
    name = law.variables[0]
    axis = {"N": 0, "D": 1}[name]
    amounts = np.geomspace(min(p[axis] for p in points), 10 * max(p[axis] for p in points), 60)
    others = {"N": max(p[0] for p in points), "D": max(p[1] for p in points)}
    predicted = [law.predict(**(others | {name: float(amount)})) for amount in amounts]
    return {
        "formula": str(law),
        "rows": [(key, value, *law.intervals[key]) for key, value in law.values.items()],
        "residual": law.residual,
        "notes": notes + law.notes + ([f"Left out as unfinished: {', '.join(left_out)}."] if left_out else []),
        "variable": {"N": "parameters N", "D": "tokens D"}[name],
        "fixed": f"the curve is for D = {others['D']:.3g} tokens" if len(law.variables) == 2 else "",
        "points": [[run.name, *point] for run, point in zip(used, points, strict=True)],
        "axis": axis,
        "curve": [[float(amount), *losses] for amount, losses in zip(amounts, predicted, strict=True)],
    }


def _best_of_each(
    runs: Sequence[Run], points: Sequence[tuple[float, float, float]]
) -> tuple[list[Run], list[tuple[float, float, float]], list[str]]:
    """Keep, for each size and amount of data, all seeds of the config with the lowest mean loss.

    A scaling law describes the best loss of a size, so that a run with, say, a bad learning rate is not a point of it.

    Returns:
      (runs, points, notes with a sentence if others were left out).
    """
    groups: dict[tuple[float, str], dict[str, list[int]]] = {}
    for number, (run, (size, amount, _)) in enumerate(zip(runs, points, strict=True)):
        same = (size, f"{amount:.3g}")  # amounts are sums of rounded rates
        groups.setdefault(same, {}).setdefault(_recipe(run), []).append(number)

    def mean(numbers: Any) -> float:
        return float(np.mean([points[number][2] for number in numbers]))

    kept = sorted(number for recipes in groups.values() for number in min(recipes.values(), key=mean))
    if len(kept) == len(runs):
        return list(runs), list(points), []
    keys = {
        key
        for recipes in groups.values()
        for key in config_table([runs[numbers[0]] for numbers in recipes.values()])[0]
        if not key.startswith(_REPETITION)
    }
    note = f"Of runs of one size and amount of data that differ in {', '.join(sorted(keys))}, only the best are used."
    return [runs[number] for number in kept], [points[number] for number in kept], [note]


def _recipe(run: Run) -> str:
    """Return, as text, a run's config without the keys in which repetitions may differ."""
    same = {key: value for key, value in run.config.items() if not key.startswith(_REPETITION)}
    return json.dumps(same, sort_keys=True)


def chart_data(runs: Sequence[Run], studies: Sequence[Study], law: dict[str, Any] | None) -> dict[str, Any]:
    """Return the data of all charts, for JSON."""
    return {
        "runs": [{"name": run.name, "tables": curves.tables(run.lines), "seconds": run.seconds} for run in runs],
        "scaling": law if law and "curve" in law else None,
        "studies": [
            {
                "name": name_of(study.directory),
                "metric": study.metric,
                "maximize": study.maximize,
                "parameters": study.varied,
                "trials": [
                    {"number": t["number"], "params": t["params"], "value": t["value"], "state": t["state"]}
                    for t in study.trials
                ],
                "measured": [trial["number"] for trial in study.measured],
                "best_so_far": study.best_so_far(),
                "importance": study.importance(),
            }
            for study in studies
        ],
    }


def to_json(value: Any) -> str:
    """Format JSON for a script element: without `<`, and with NaN and infinities as strings for JavaScript's Number."""
    return json.dumps(_finite(value), separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

"""Two evaluations of the same records laid side by side, with a paired test of each difference."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import DataError
from lm_research.evaluation import statistics
from lm_research.evaluation.results import markdown, read_plan, read_scorers
from lm_research.evaluation.runner import EvalJob
from lm_research.evaluation.scorers import Scorer, main_metric
from lm_research.evaluation.suite import Entry
from lm_research.metrics import higher_is_better

_GIVEN = ("text", "label", "answers", "good", "bad")  # what two evaluations must have in common, record by record
_METRICS = ("accuracy", "exact_match")  # right or wrong record by record: McNemar's test


def compare(a: pathlib.Path, b: pathlib.Path, resamples: int) -> dict[str, Any]:
    """The content of comparison.json: for each task of both A's and B's first metric, their difference and its test.

    Raises:
      DataError: no finished evaluation there, no task in common, or records that differ.
    """
    plans = [read_plan(a), read_plan(b)]
    others = {entry.name: entry for entry in plans[1].entries}
    common = [(entry, others[entry.name]) for entry in plans[0].entries if entry.name in others]
    if not common:
        names = [", ".join(entry.name for entry in plan.entries) for plan in plans]
        raise DataError(
            f"{a} has the tasks {names[0]}; {b} has {names[1]}: none in common. Evaluate both on one suite."
        )
    tasks = {entry.name: _task(plans, (entry, other), resamples) for entry, other in common}
    adjusted = statistics.holm([task["p"] for task in tasks.values()])
    for task, value in zip(tasks.values(), adjusted, strict=True):
        task["p_holm"] = value
    return {"a": str(a), "b": str(b), "resamples": resamples, "confidence": statistics.CONFIDENCE, "tasks": tasks}


def _task(plans: Sequence[EvalJob], entries: Sequence[Entry], resamples: int) -> dict[str, Any]:
    a, b = (read_scorers(plan, entry) for plan, entry in zip(plans, entries, strict=True))
    metric = main_metric(entries[0], a[0])
    _check_equal(a[0], b[0], plans, entries[0].name)

    def mean(side: Any) -> float:
        return float(np.mean([scorer.all()[metric] for scorer in side]))

    gaps_R = statistics.resampled(b, resamples)[metric] - statistics.resampled(a, resamples)[metric]
    low, high = statistics.interval(gaps_R)
    found: dict[str, Any] = {
        "metric": metric,
        "records": a[0].num_records,
        "a": mean(a),
        "b": mean(b),
        "difference": mean(b) - mean(a),
        "low": low,
        "high": high,
        "lower_is_better": not higher_is_better(metric),
    }
    if (
        metric in _METRICS
        and metric in a[0].means
        and set(np.unique(a[0].means[metric])) <= {0.0, 1.0}
        and len(a) == len(b) == 1
        and a[0].together_N is None  # its records must be independent
    ):
        p, only_a, only_b = statistics.mcnemar(a[0].means[metric], b[0].means[metric])
        return found | {"test": "McNemar, exact", "p": p, "only_a_right": only_a, "only_b_right": only_b}
    if len(a) != len(b) and metric not in a[0].means:
        raise DataError(
            f"Task {entries[0].name}: {plans[0].output} is of {len(a)} models, {plans[1].output} of {len(b)}. For {metric} give as many."
        )
    return found | {"test": "paired permutation", "p": statistics.permutation(a, b, metric, resamples)}


def _check_equal(a: Scorer, b: Scorer, plans: Sequence[EvalJob], name: str) -> None:
    """Raises a DataError unless both are of the same records, in one order, and know the same classes."""
    where = f"Task {name} of {plans[0].output} and of {plans[1].output}"
    if a.num_records != b.num_records:
        raise DataError(f"{where}: {a.num_records} and {b.num_records} records. Evaluate both on the same data.")
    for own, other in zip(a.rows, b.rows, strict=True):
        differing = [key for key in _GIVEN if own.get(key) != other.get(key)]
        if differing:
            raise DataError(
                f"{where} differ in the {differing[0]} of record {own['record']} ({own['where']}): {own.get(differing[0])!r} and "
                f"{other.get(differing[0])!r}. Evaluate both on the same data."
            )
    if list(a.labels) != list(b.labels):
        raise DataError(f"{where}: their models have other classes, or in another order. They cannot be compared.")


def table(comparison: Mapping[str, Any]) -> str:
    """In Markdown: a row for each task."""
    percent = f"{100 * comparison['confidence']:.0f}% interval"
    heads = ["task", "metric", "A", "B", "B - A", percent, "p", "p (Holm)", "test", "better"]
    rows = []
    for name, task in comparison["tasks"].items():
        b_wins = (task["difference"] > 0) != task["lower_is_better"]
        better = ("B" if b_wins else "A") if task["p_holm"] < 1 - comparison["confidence"] else "not shown"
        between = f"{task['low']:+.4f} to {task['high']:+.4f}"
        values = [f"{task['a']:.4f}", f"{task['b']:.4f}", f"{task['difference']:+.4f}", between]
        rows.append([name, task["metric"], *values, f"{task['p']:.4g}", f"{task['p_holm']:.4g}", task["test"], better])
    return f"A: {comparison['a']}\nB: {comparison['b']}\n\n" + markdown(heads, rows)

"""Comparison of two evaluations of the same examples, with a paired significance test for each task."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import DataError
from lm_research.evaluation import statistics
from lm_research.evaluation.results import markdown, read_job, read_scorers
from lm_research.evaluation.runner import EvalJob
from lm_research.evaluation.scorers import Scorer, main_metric
from lm_research.evaluation.suite import Entry
from lm_research.metrics import higher_is_better

_INPUT_FIELDS = ("text", "label", "answers", "good", "bad")  # must be equal in both evaluations, example by example
_BINARY_METRICS = ("accuracy", "exact_match")  # 0 or 1 for each example: McNemar's test applies


def compare(a: pathlib.Path, b: pathlib.Path, resamples: int) -> dict[str, Any]:
    """Compare the main metric of every task that two evaluations have in common.

    Args:
      a: output directory of the first evaluation.
      b: output directory of the second evaluation.
      resamples: number of bootstrap samples and of permutations.

    Returns:
      The content of comparison.json: for each task both values, their difference, its interval and its p-value.

    Raises:
      DataError: a directory is not a finished evaluation, or no task or not all examples are in common.
    """
    jobs = [read_job(a), read_job(b)]
    others = {entry.name: entry for entry in jobs[1].entries}
    common = [(entry, others[entry.name]) for entry in jobs[0].entries if entry.name in others]
    if not common:
        names = [", ".join(entry.name for entry in job.entries) for job in jobs]
        raise DataError(
            f"{a} has the tasks {names[0]}, but {b} has {names[1]}: none in common. Evaluate both on the same suite."
        )
    tasks = {entry.name: _compare_task(jobs, (entry, other), resamples) for entry, other in common}
    adjusted = statistics.holm([task["p"] for task in tasks.values()])
    for task, value in zip(tasks.values(), adjusted, strict=True):
        task["p_holm"] = value
    return {"a": str(a), "b": str(b), "resamples": resamples, "confidence": statistics.CONFIDENCE, "tasks": tasks}


def _compare_task(jobs: Sequence[EvalJob], entries: Sequence[Entry], resamples: int) -> dict[str, Any]:
    a, b = (read_scorers(job, entry) for job, entry in zip(jobs, entries, strict=True))
    metric = main_metric(entries[0], a[0])
    _check_same_examples(a[0], b[0], jobs, entries[0].name)

    def mean(side: Any) -> float:
        return float(np.mean([scorer.score_all()[metric] for scorer in side]))

    difference_R = statistics.resampled(b, resamples)[metric] - statistics.resampled(a, resamples)[metric]
    low, high = statistics.interval(difference_R)
    result: dict[str, Any] = {
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
        metric in _BINARY_METRICS
        and metric in a[0].means
        and set(np.unique(a[0].means[metric])) <= {0.0, 1.0}
        and len(a) == len(b) == 1
        and a[0].group_N is None  # the test requires independent examples
    ):
        p, only_a, only_b = statistics.mcnemar(a[0].means[metric], b[0].means[metric])
        return result | {"test": "McNemar, exact", "p": p, "only_a_right": only_a, "only_b_right": only_b}
    if len(a) != len(b) and metric not in a[0].means:
        raise DataError(
            f"Task {entries[0].name}: {jobs[0].output} has {len(a)} models, but {jobs[1].output} has {len(b)}. The metric {metric} "
            "requires equal numbers of models."
        )
    return result | {"test": "paired permutation", "p": statistics.permutation(a, b, metric, resamples)}


def _check_same_examples(a: Scorer, b: Scorer, jobs: Sequence[EvalJob], name: str) -> None:
    """Raise a DataError unless both have the same examples in the same order, and the same classes."""
    where = f"Task {name} of {jobs[0].output} and of {jobs[1].output}"
    if a.num_records != b.num_records:
        raise DataError(f"{where} have {a.num_records} and {b.num_records} records. Evaluate both on the same data.")
    for first, second in zip(a.rows, b.rows, strict=True):
        differing = [key for key in _INPUT_FIELDS if first.get(key) != second.get(key)]
        if differing:
            key = differing[0]
            raise DataError(
                f"{where} differ in the {key} of record {first['record']} ({first['where']}): {first.get(key)!r} and "
                f"{second.get(key)!r}. Evaluate both on the same data."
            )
    if list(a.labels) != list(b.labels):
        raise DataError(
            f"{where} cannot be compared: the classes of their models, or the order of the classes, differ. Evaluate models with "
            "the same classes."
        )


def table(comparison: Mapping[str, Any]) -> str:
    """Format a comparison as a Markdown table with a row for each task."""
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

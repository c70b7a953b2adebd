"""What an evaluation says: results.json, and the table that people paste."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from lm_research.common.disk import write_atomically
from lm_research.common.documents import Count, Finite, check, check_fields, parse_json, read_bytes, read_json
from lm_research.common.lines import split_lines
from lm_research.errors import DataError
from lm_research.evaluation import statistics
from lm_research.evaluation.runner import AGAIN, EvalJob, read_made_from
from lm_research.evaluation.scorers import Scorer, main_metric, make_scorer
from lm_research.evaluation.suite import Entry

_LARGEST = 2**32  # bytes of predictions
# Of predictions, as far as all tasks that have them mean the same.
_FIELDS = {
    "record": Count,
    "where": str,
    "text": str,
    "logits": list[Finite],
    "probability": Finite,
    "good": str,
    "bad": str,
    "good_nats": Finite,
    "bad_nats": Finite,
    "good_tokens": Count,
    "bad_tokens": Count,
    "nats": Finite,
    "tokens": Count,
    "words": Count,
    "bytes": Count,
    "rank": Count,
    "similarity": Finite,
    "answers": list[str],
    "exact_match": Finite,
    "f1": Finite,
    "target": str,
    "together": str | int,
    "credit": Finite,
    "group": str,
}


def read_scorers(plan: EvalJob, entry: Entry) -> list[Scorer]:
    """A task's predictions by each model, ready to be scored; raises a DataError where a file is missing or damaged."""
    found = []
    for number in range(len(plan.models)):
        path = plan.predictions(entry, number)
        labels = read_json(path.with_name("task.json"), _Labels, fix=AGAIN)["labels"]
        rows = _read_rows(path)
        try:
            found.append(make_scorer(entry, labels, rows))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
            raise DataError(
                f"{path} holds no predictions of a task {entry.task} ({type(error).__name__}: {error}). {AGAIN}"
            ) from error
    return found


class _Labels(TypedDict):
    labels: list[str]


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The predictions of a file, one a line; raises a DataError that names the line that is none, or a number that is not finite."""
    try:
        lines = split_lines(read_bytes(path, fix=AGAIN, limit=_LARGEST).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). {AGAIN}") from error
    if not lines:
        raise DataError(f"{path} is empty. {AGAIN}")
    rows = [parse_json(line, f"{path}, line {number}", fix=AGAIN) for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        check_fields(row, _FIELDS, f"{path}, line {number}", fix=AGAIN)
        if missing := [name for name in ("record", "where") if row.get(name) is None]:
            raise DataError(f"{path}, line {number} has no {missing[0]!r}. {AGAIN}")
    return rows


def read_plan(output: pathlib.Path) -> EvalJob:
    """The evaluation that an output directory is of; raises a DataError if it is of none, or not finished."""
    path = output / "made_from.json"
    if not path.is_file() or not (output / "results.json").is_file():
        raise DataError(
            f"{output} holds no finished evaluation. Make one: python -m lm_research.evaluate --model ... --output {output}"
        )
    made_from = read_made_from(path)
    entries = [check(entry, Entry, str(path), fix=AGAIN) for entry in made_from["tasks"]]
    return EvalJob(entries, made_from["models"], output, made_from["batch_size"], made_from["dtype"])


def summarize(plan: EvalJob, scorers: Mapping[str, Sequence[Scorer]], resamples: int) -> dict[str, Any]:
    """The content of results.json."""
    tasks: dict[str, dict[str, Any]] = {}
    for entry in plan.entries:
        own = scorers[entry.name]
        tasks[entry.name] = {
            "task": entry.task,
            "metric": main_metric(entry, own[0]),
            "records": own[0].num_records,
            "scores": statistics.summarize(own, resamples),
        } | _groups(entry, own)
    means = [task["scores"][task["metric"]]["mean"] for task in tasks.values()]
    return {
        "models": list(plan.models),
        "confidence": statistics.CONFIDENCE,
        "resamples": resamples,
        "average": sum(means) / len(means),
        "tasks": tasks,
    }


def _groups(entry: Entry, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """The first metric by the groups of records, where the suite names a field for them."""
    places: dict[str, list[int]] = {}
    for number, row in enumerate(scorers[0].rows):
        if "group" in row:
            places.setdefault(row["group"], []).append(number)
    metric = main_metric(entry, scorers[0])
    by_group: dict[str, dict[str, float]] = {
        name: {
            "records": len(own),
            metric: sum(scorer.score(np.array(own))[metric] for scorer in scorers) / len(scorers),
        }
        for name, own in sorted(places.items())
    }
    return {"groups": by_group} if by_group else {}


def write(plan: EvalJob, results: Mapping[str, Any]) -> str:
    """Writes results.json and results.md; returns the table."""
    write_atomically(plan.output / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    text = table(results)
    write_atomically(plan.output / "results.md", text)
    return text


def table(results: Mapping[str, Any]) -> str:
    """A row for each task, in Markdown: its first metric with spread and interval, then the others."""
    several = len(results["models"]) > 1
    percent = f"{100 * results['confidence']:.0f}% interval"
    heads = ["task", "records", "metric", "value", *(["std over models"] if several else []), percent, "also"]
    rows = []
    for name, task in results["tasks"].items():
        found = task["scores"][task["metric"]]
        std = [f"{found['std']:.4f}"] if several else []
        others = ", ".join(f"{key} {one['mean']:.4f}" for key, one in task["scores"].items() if key != task["metric"])
        between = "" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
        rows.append([name, f"{task['records']:,}", task["metric"], f"{found['mean']:.4f}", *std, between, others])
    text = markdown(heads, rows)
    if len(results["tasks"]) > 1:
        text += f"\nAverage of the first metrics: {results['average']:.4f}\n"
    lines = [f"- {i + 1}: {model}" for i, model in enumerate(results["models"])] if several else []
    text += "".join(f"{line}\n" for line in (["", "Models:", ""] if several else []) + lines)
    for name, task in results["tasks"].items():
        if "groups" in task:
            metric = task["metric"]
            rows = [[group, f"{one['records']:,}", f"{one[metric]:.4f}"] for group, one in task["groups"].items()]
            text += f"\n{name} by group:\n\n" + markdown(["group", "records", metric], rows)
    return text


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned, so that it reads as plain text too."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [heads, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return (
        "\n".join([line(cells[0]), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells[1:])])
        + "\n"
    )

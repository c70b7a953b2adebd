"""Results of an evaluation: results.json and its Markdown table."""

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
from lm_research.evaluation.runner import RERUN, EvalJob, read_made_from
from lm_research.evaluation.scorers import Scorer, main_metric, make_scorer
from lm_research.evaluation.suite import Entry

_MAX_BYTES = 2**32  # of a file of predictions
# Types of the fields of a prediction that have one meaning in all tasks.
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


def read_scorers(job: EvalJob, entry: Entry) -> list[Scorer]:
    """Return a scorer of a task's predictions for each model; raise a DataError if a file is missing or damaged."""
    scorers = []
    for number in range(len(job.models)):
        path = job.predictions(entry, number)
        labels = read_json(path.with_name("task.json"), _Labels, fix=RERUN)["labels"]
        rows = _read_rows(path)
        try:
            scorers.append(make_scorer(entry, labels, rows))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
            raise DataError(
                f"{path} does not contain predictions of a task {entry.task} ({type(error).__name__}: {error}). {RERUN}"
            ) from error
    return scorers


class _Labels(TypedDict):
    labels: list[str]


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read predictions, one per line; raise a DataError that names the first invalid line."""
    try:
        lines = split_lines(read_bytes(path, fix=RERUN, limit=_MAX_BYTES).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). {RERUN}") from error
    if not lines:
        raise DataError(f"{path} is empty. {RERUN}")
    rows = [parse_json(line, f"{path}, line {number}", fix=RERUN) for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        check_fields(row, _FIELDS, f"{path}, line {number}", fix=RERUN)
        if missing := [name for name in ("record", "where") if row.get(name) is None]:
            raise DataError(f"{path}, line {number} has no {missing[0]!r}. {RERUN}")
    return rows


def read_job(output: pathlib.Path) -> EvalJob:
    """Return the evaluation in an output directory; raise a DataError if there is none, or it is not finished."""
    path = output / "made_from.json"
    if not path.is_file() or not (output / "results.json").is_file():
        raise DataError(
            f"{output} contains no finished evaluation. Run one: python -m lm_research.evaluate --model ... --output {output}"
        )
    made_from = read_made_from(path)
    entries = [check(entry, Entry, str(path), fix=RERUN) for entry in made_from["tasks"]]
    return EvalJob(entries, made_from["models"], output, made_from["batch_size"], made_from["dtype"])


def summarize(job: EvalJob, scorers: Mapping[str, Sequence[Scorer]], resamples: int) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
      job: the evaluation.
      scorers: for each task, a scorer per model.
      resamples: number of bootstrap samples; 0 computes no intervals.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for entry in job.entries:
        by_model = scorers[entry.name]
        tasks[entry.name] = {
            "task": entry.task,
            "metric": main_metric(entry, by_model[0]),
            "records": by_model[0].num_records,
            "scores": statistics.summarize(by_model, resamples),
        } | _slices(entry, by_model)
    means = [task["scores"][task["metric"]]["mean"] for task in tasks.values()]
    return {
        "models": list(job.models),
        "confidence": statistics.CONFIDENCE,
        "resamples": resamples,
        "average": sum(means) / len(means),
        "tasks": tasks,
    }


def _slices(entry: Entry, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Return the main metric for each value of the suite's `slice_key`, if it is set."""
    members: dict[str, list[int]] = {}
    for number, row in enumerate(scorers[0].rows):
        if "group" in row:
            members.setdefault(row["group"], []).append(number)
    metric = main_metric(entry, scorers[0])
    by_slice: dict[str, dict[str, float]] = {
        name: {
            "records": len(numbers),
            metric: sum(scorer.score(np.array(numbers))[metric] for scorer in scorers) / len(scorers),
        }
        for name, numbers in sorted(members.items())
    }
    return {"groups": by_slice} if by_slice else {}


def write(job: EvalJob, results: Mapping[str, Any]) -> str:
    """Write results.json and results.md, and return the table."""
    write_atomically(job.output / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    text = table(results)
    write_atomically(job.output / "results.md", text)
    return text


def table(results: Mapping[str, Any]) -> str:
    """Format results as a Markdown table with a row for each task: its main metric with interval, then the others."""
    several = len(results["models"]) > 1
    percent = f"{100 * results['confidence']:.0f}% interval"
    heads = ["task", "records", "metric", "value", *(["std over models"] if several else []), percent, "also"]
    rows = []
    for name, task in results["tasks"].items():
        main = task["scores"][task["metric"]]
        std = [f"{main['std']:.4f}"] if several else []
        others = ", ".join(f"{key} {x['mean']:.4f}" for key, x in task["scores"].items() if key != task["metric"])
        interval = "" if main["low"] is None else f"{main['low']:.4f} to {main['high']:.4f}"
        rows.append([name, f"{task['records']:,}", task["metric"], f"{main['mean']:.4f}", *std, interval, others])
    text = markdown(heads, rows)
    if len(results["tasks"]) > 1:
        text += f"\nAverage of the first metrics: {results['average']:.4f}\n"
    lines = [f"- {i + 1}: {model}" for i, model in enumerate(results["models"])] if several else []
    text += "".join(f"{line}\n" for line in (["", "Models:", ""] if several else []) + lines)
    for name, task in results["tasks"].items():
        if "groups" in task:
            metric = task["metric"]
            rows = [[group, f"{x['records']:,}", f"{x[metric]:.4f}"] for group, x in task["groups"].items()]
            text += f"\n{name} by group:\n\n" + markdown(["group", "records", metric], rows)
    return text


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns, so that it is readable as plain text."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [heads, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return (
        "\n".join([line(cells[0]), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells[1:])])
        + "\n"
    )

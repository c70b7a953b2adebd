"""Metrics over a run, by step, tokens, FLOPs and hours.

metrics.jsonl counts tokens. Of hours it has the seconds a step, and what else a window of steps took is its rate over that of tokens x its
tokens; in lines of older versions, without the count, its rate x its seconds a step x its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Axis -> the rate it adds up, in units a second; hours add up the seconds of steps themselves.
RATES = {"tokens": "tokens_per_second", "flops": "flops_per_second", "hours": None}


def tables(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl column by column, a table for each set of keys, so that no number is changed or left out.

    Returns:
      [{"columns": {key: values, "step" among them}, "axes": {name of RATES: values}}]; an axis that some training line has no
      rate for is left out.
    """
    groups: dict[frozenset[str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(frozenset(line), []).append(line)
    totals = {axis: known for axis, rate in RATES.items() if (known := _total(lines, rate)) is not None}
    return [
        {
            "columns": {key: [line[key] for line in group] for key in group[0]},
            "axes": {axis: _at(known, [line["step"] for line in group]) for axis, known in totals.items()},
        }
        for group in groups.values()
    ]


def total(lines: Sequence[dict[str, Any]], axis: str) -> float | None:
    """What a run has used up to its last line, of an axis of RATES; None where its lines do not tell."""
    known = _total(lines, RATES[axis])
    return None if known is None else _at(known, [max(line["step"] for line in lines)])[0]


def _total(lines: Sequence[dict[str, Any]], rate: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, totals) from (0, 0) to the last line; steps past the last rate go on at it."""
    keys = {"step_seconds", *([rate] if rate else [])}
    windows = [line for line in lines if "loss_nats" in line]
    if not windows or not all(keys <= line.keys() for line in windows):
        return None
    steps = np.array([0, *(line["step"] for line in windows)], float)
    if rate and all({"tokens", "tokens_per_second"} <= line.keys() for line in windows):
        tokens = np.diff([0, *(line["tokens"] for line in windows)])
        shares = [
            1.0 if rate == RATES["tokens"] else line[rate] / max(line["tokens_per_second"], 1e-9) for line in windows
        ]
        used = tokens * np.array(shares)
    else:
        rates = [line["step_seconds"] * (line[rate] if rate else 1 / 3600) for line in windows]
        used = np.diff(steps) * np.array(rates)
    end = max(max(line["step"] for line in lines), steps[-1])
    more = (end - steps[-1]) * used[-1] / max(1.0, steps[-1] - steps[-2])
    return np.append(steps, end), np.cumsum([0.0, *used, more])


def _at(known: tuple[np.ndarray, np.ndarray], steps: Sequence[int]) -> list[float]:
    found = np.interp(steps, *known)
    return [
        int(value) if value.is_integer() else float(f"{value:.6g}") for value in found.tolist()
    ]  # rates have six digits

"""Metrics of a run over steps, tokens, FLOPs and hours.

metrics.jsonl counts tokens. The FLOPs of a window of steps are its tokens times the ratio of the rates of FLOPs and tokens,
and its hours follow from the seconds per step. Lines of older versions have no count of tokens: there, an amount is its rate
times the seconds per step times the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Axis -> the rate of which it is the integral, in units per second; hours are the integral of time itself.
RATES = {"tokens": "tokens_per_second", "flops": "flops_per_second", "hours": None}


def tables(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Transpose the lines of metrics.jsonl to a table for each set of keys, with all numbers unchanged.

    Returns:
      [{"columns": {key: values, including "step"}, "axes": {name of RATES: values}}]; an axis is left out if its rate is
      missing in some training line.
    """
    groups: dict[frozenset[str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(frozenset(line), []).append(line)
    totals = {axis: curve for axis, rate in RATES.items() if (curve := _total(lines, rate)) is not None}
    return [
        {
            "columns": {key: [line[key] for line in group] for key in group[0]},
            "axes": {axis: _at(curve, [line["step"] for line in group]) for axis, curve in totals.items()},
        }
        for group in groups.values()
    ]


def total(lines: Sequence[dict[str, Any]], axis: str) -> float | None:
    """Return a run's total at its last line, for an axis of RATES; None if a rate is missing."""
    curve = _total(lines, RATES[axis])
    return None if curve is None else _at(curve, [max(line["step"] for line in lines)])[0]


def _total(lines: Sequence[dict[str, Any]], rate: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (steps, totals) from (0, 0) to the last line, extrapolated with the last rate."""
    keys = {"step_seconds", *([rate] if rate else [])}
    windows = [line for line in lines if "loss_nats" in line]
    if not windows or not all(keys <= line.keys() for line in windows):
        return None
    steps = np.array([0, *(line["step"] for line in windows)], float)
    if rate and all({"tokens", "tokens_per_second"} <= line.keys() for line in windows):
        tokens = np.diff([0, *(line["tokens"] for line in windows)])
        per_token = [
            1.0 if rate == RATES["tokens"] else line[rate] / max(line["tokens_per_second"], 1e-9) for line in windows
        ]
        used = tokens * np.array(per_token)
    else:
        rates = [line["step_seconds"] * (line[rate] if rate else 1 / 3600) for line in windows]
        used = np.diff(steps) * np.array(rates)
    end = max(line["step"] for line in lines)
    rest = (end - steps[-1]) * used[-1] / max(1.0, steps[-1] - steps[-2])
    return np.append(steps, end), np.cumsum([0.0, *used, rest])


def _at(curve: tuple[np.ndarray, np.ndarray], steps: Sequence[int]) -> list[float]:
    """Interpolate a curve; six digits, as the rates have."""
    values = np.interp(steps, *curve).tolist()
    return [int(value) if value.is_integer() else float(f"{value:.6g}") for value in values]

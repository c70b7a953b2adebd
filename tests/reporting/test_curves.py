"""Amounts over steps by arithmetic, and JSON that a page can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lm_research.reporting import contents, curves
from lm_research.reporting.runs import Run


def line(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss_nats": 2.0, "step_seconds": 0.5, **values}


RATED = [
    line(10, tokens_per_second=100.0, flops_per_second=3e3),
    line(30, step_seconds=0.25, tokens_per_second=800.0, flops_per_second=8e3),
]


def axes(lines: list[dict[str, Any]], steps: list[int]) -> dict[str, list[float]]:
    (table,) = curves.tables([*lines, *({"step": step, "eval_loss_nats": 1.0} for step in steps)])[1:]
    return table["axes"]


def test_rates_times_seconds_times_steps() -> None:
    """10 steps of 0.5 s, then 20 of 0.25 s: 500 and 4,000 tokens; step 20 is in the middle, step 36 six steps of 200 further."""
    found = axes(RATED, [5, 20, 36])
    assert found["tokens"] == [250, 2500, 5700]
    assert found["flops"] == [7500, 35_000, 67_000]  # 15,000 and 40,000, of which half
    assert found["hours"] == pytest.approx([2.5 / 3600, 7.5 / 3600, 11.5 / 3600], rel=1e-5)
    assert curves.total(RATED, "tokens") == 4500 and curves.total(RATED, "flops") == 55_000


def test_counted_tokens() -> None:
    """The rates give only the FLOPs of a token, 30 and 10; a window without time has no rate."""
    counted = [line | {"tokens": tokens} for line, tokens in zip(RATED, (600, 4700), strict=True)]
    found = axes(counted, [5, 30, 32])
    assert found["tokens"] == [300, 4700, 5110] and found["flops"] == [9000, 59_000, 63_100]
    stopped = [line(10, tokens=5, tokens_per_second=0.0, flops_per_second=0.0)]
    assert curves.total(stopped, "tokens") == 5 and curves.total(stopped, "flops") == 0


def test_two_windows_that_end_at_one_step() -> None:
    """The second has no steps, and so no rate per step: one step of 0 is used."""
    twice = [RATED[0], RATED[0], {"step": 12, "eval_loss_nats": 1.0}]
    assert curves.total(twice, "tokens") == 500


@pytest.mark.parametrize("missing", ["tokens_per_second", "step_seconds", "loss_nats"])
def test_amounts_without_a_rate_are_unknown(missing: str) -> None:
    lines = [{name: x for name, x in one.items() if name != missing} for one in RATED]
    assert curves.total(lines, "tokens") is None
    known = {"tokens_per_second": ["flops", "hours"]}.get(missing, [])
    assert [axis for axis in curves.RATES if curves.total(lines, axis) is not None] == known


def test_lines_of_equal_keys_are_one_table() -> None:
    first, second = curves.tables([RATED[0], {"step": 20, "eval_loss_nats": 1 / 3}, RATED[1]])
    assert first["columns"]["step"] == [10, 30] and first["columns"]["tokens_per_second"] == [100.0, 800.0]
    assert second["columns"] == {"step": [20], "eval_loss_nats": [1 / 3]}
    assert first["axes"]["tokens"] == [500, 4500]


def test_six_digits() -> None:
    lines = [line(3, tokens_per_second=1 / 3, step_seconds=1.0)]
    assert curves.total([*lines, {"step": 4}], "tokens") == 1.33333


def test_numbers_that_json_lacks_are_texts() -> None:
    given = {"a": [math.nan, (math.inf, -math.inf)], "b": 1.5, "c": "<"}
    assert json.loads(contents.to_json(given)) == {"a": ["NaN", ["Infinity", "-Infinity"]], "b": 1.5, "c": "<"}
    assert "<" not in contents.to_json(given)


@pytest.mark.parametrize(
    ("lines", "summary", "step", "status"),
    [
        ([], {}, 0, "unfinished"),
        ([{"step": 5}], {}, 5, "unfinished"),
        ([{"step": 5}], {"step": 5, "status": "finished"}, 5, "finished"),
        ([{"step": 6}], {"step": 5, "status": "finished"}, 6, "unfinished"),  # resumed
        ([{"step": 4}], {"step": 5, "status": "stopped"}, 5, "stopped"),
    ],
)
def test_the_status_of_a_run(lines: list[dict[str, Any]], summary: dict[str, Any], step: int, status: str) -> None:
    run = Run("a", Path("a"), {}, lines, [], {}, summary, [], [])
    assert (run.step, run.status) == (step, status)


def test_final_values_are_the_last_of_each_name_and_the_test_scores() -> None:
    lines = [{"step": 1, "loss_nats": 3.0, "mfu": 0.1}, {"step": 2, "loss_nats": 2.0}]
    run = Run("a", Path("a"), {}, lines, [], {}, {"test": {"eval_f1": 0.5}}, [], [])
    assert run.final == {"loss_nats": 2.0, "mfu": 0.1, "test_f1": 0.5}

"""The plain helpers of experiments/benchmarks/generate: rows, numbers and the table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.generate import run, workload
from experiments.benchmarks.generate.workload import Row

ROW = Row(4, 256, 8, 1, 4.0)


def side(*seconds: float, others: tuple[float, ...] = ()) -> dict[str, Any]:
    others = others or (0.0,) * len(seconds)
    return {"turns": [{"seconds": s, "cpu_seconds": 2 * s, "others": o} for s, o in zip(seconds, others, strict=True)]}


def test_rows_match_the_goals() -> None:
    rows = {row.name: row for row in workload.choose("all")}
    assert {name: row.goal for name, row in rows.items()} == {
        "4x256-batch1": 4.0,
        "4x256-batch8": 4.0,
        "4x256-beam4": 3.0,
        "12x768-batch1": 1.3,
        "12x768-batch8": 1.3,
        "12x768-beam4": 3.0,
    }
    assert [row.name for row in workload.choose("small")] == [name for name in rows if name.startswith("4x")]
    with pytest.raises(ValueError, match="Rows:"):
        workload.choose("5x5-batch1")
    # 85M in blocks and 38.6M in the token table.
    assert round(rows["12x768-batch1"].step_numbers / 1e6, 1) == 123.5


def test_each_call_gets_new_prompts_the_same_on_both_sides() -> None:
    first, again, other = (workload.prompts(ROW, call) for call in (0, 0, 1))
    assert first.shape == (8, 64) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_only_quiet_rounds_count() -> None:
    sides = {"ours": side(1.0, 5.0, 2.0, others=(0.0, 0.5, 0.05)), "torch": side(4.0, 4.0, 6.0)}
    summary = run.summarize({"row": dataclasses.asdict(ROW), "sides": sides})
    assert (summary["quiet"], summary["rounds"]) == (2, 3)
    assert summary["sides"]["ours"]["median"] == 1.5 and summary["sides"]["torch"]["median"] == 5.0
    assert summary["ratio"] == 5 / 1.5 and summary["fastest_ratio"] == 4.0
    loud = {"ours": side(1.0, 3.0, others=(0.5, 0.5)), "torch": side(4.0, 4.0)}
    assert run.summarize({"row": dataclasses.asdict(ROW), "sides": loud})["sides"]["ours"]["median"] == 2.0


def test_the_table_shows_missed_goals() -> None:
    sides = {"ours": side(1.0, 1.0), "torch": side(3.0, 3.0)}
    result = {"row": dataclasses.asdict(ROW), "sides": sides}
    result["summary"] = run.summarize(result)
    head, rule, line = run.table([result]).splitlines()
    assert len(head.split("|")) == len(rule.split("|")) == len(line.split("|"))
    assert "| 1,024 | 341 | 3.00 | 4 (short) |" in line and line.endswith("| 2 of 2 |")
    alone = {"row": dataclasses.asdict(ROW), "sides": {"ours": side(1.0)}}
    alone["summary"] = run.summarize(alone)
    assert "| - |" in run.line(alone)
    read = {dtype: f"| {size * (12 * 4 * 256**2 + 50257 * 256) * 128 / 1e9:.1f} |" for dtype, size in run.BYTES.items()}
    assert read["float32"] in run.line(alone) and read["float32"] != read["bfloat16"]
    alone["sides"]["ours"]["options"] = {"dtype": "bfloat16"}
    assert read["bfloat16"] in run.line(alone) and "| bfloat16 |" in run.line(alone)

"""Lines of metrics: tokens are counted, not derived from rates; no fraction of a peak that was measured too low."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from lm_research.objectives.causal_lm import NextTokenOfDecoder
from lm_research.reporting import curves
from lm_research.run import meter
from lm_research.run.meter import Meter

SECONDS = 0.6127349  # of 20 steps: 15,360 / SECONDS, rounded, times seconds a step, rounded, is not 15,360


def make(monkeypatch: pytest.MonkeyPatch, log: list[str], lines: list[dict[str, Any]] = (), peak: float = 1e9) -> Meter:
    monkeypatch.setattr(meter, "row_lengths", lambda *args: (0, 64))
    monkeypatch.setattr(meter, "train_flops_per_token", lambda *args: 1000.0)
    monkeypatch.setattr(meter, "peak_flops", lambda: (peak, "made up"))
    clock = types.SimpleNamespace(lap=lambda: SECONDS, lost={"data": 0.0}, goodput=0.5)
    config = types.SimpleNamespace(train=types.SimpleNamespace(batch_size=16))
    objective = NextTokenOfDecoder()
    examples = types.SimpleNamespace(num_examples=100)
    start = lines[-1]["step"] if lines else 0
    return Meter(config, objective, None, examples, start, log.append, clock, lines)


def window(real: int) -> dict[str, np.ndarray]:
    values = {
        "steps": 20,
        "skipped": 0,
        "grad_norm": 20,
        "lm_loss_nats": 9,
        "lm_accuracy": 1,
        "total_tokens": 9,
        "total_real": real,
    }
    return {"window": {name: np.float32(value) for name, value in values.items()}}


def test_token_counts_continue_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(monkeypatch, [])
    lines = [first.line(step, window(real), lambda step: 0.1) for step, real in ((20, 15360), (40, 15001))]
    lines = [{"step": step, **line} for step, line in zip((20, 40), lines, strict=True)]
    assert [line["tokens"] for line in lines] == [15360, 30361]
    assert lines[0]["tokens_per_second"] == pytest.approx(15360 / SECONDS, rel=1e-5)
    # 20 steps of 16 rows of 100 are 3.2 epochs; `lap` covers 20 steps, whose mean gradient norm and losses are a twentieth and a ninth.
    assert [line["epoch"] for line in lines] == [3.2, 6.4] and lines[0]["goodput"] == 0.5
    assert lines[1]["step_seconds"] == pytest.approx(SECONDS / 20, rel=1e-5)
    assert (lines[0]["grad_norm"], lines[0]["lm_loss_nats"], lines[0]["data_seconds"]) == (1.0, 1.0, 0.0)
    assert (
        first.line(60, window(7), lambda step: float(step))["learning_rate"] == 59
    )  # of step 59, counted from 0: the last taken
    again = make(monkeypatch, [], lines)
    lines.append({"step": 60, **again.line(60, window(7), lambda step: 0.1)})
    assert lines[-1]["tokens"] == 30368
    (table,) = curves.tables(lines)
    assert table["axes"]["tokens"] == [15360, 30361, 30368] and curves.total(lines, "tokens") == 30368
    assert table["axes"]["flops"] == pytest.approx([15360e3, 30361e3, 30368e3], rel=1e-3)
    assert table["axes"]["hours"][-1] == pytest.approx(3 * SECONDS / 3600, rel=1e-5)
    old = [{name: x for name, x in line.items() if name != "tokens"} for line in lines]  # before tokens were counted
    assert "tokens" not in make(monkeypatch, [], old).line(80, window(7), lambda step: 0.1)


def test_more_than_a_measured_peak_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 FLOP a token: 25 M a second."""
    log: list[str] = []
    low = make(monkeypatch, log, peak=2e7)
    assert "mfu" not in low.line(20, window(15360), lambda step: 0.1) and "mfu: left out" in log[-1]
    assert "mfu" not in low.line(40, window(15), lambda step: 0.1) and len(log) == 2
    fair = make(monkeypatch, log, peak=1e8)
    assert fair.line(20, window(15360), lambda step: 0.1)["mfu"] == pytest.approx(15360e3 / SECONDS / 1e8, abs=1e-5)

"""Lines of metrics: tokens are counted, not derived from rates; no fraction of a peak that was measured too low."""

from __future__ import annotations

import types
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lm_research.objectives.causal_lm import NextTokenOfDecoder
from lm_research.reporting import curves
from lm_research.run import meter
from lm_research.run.meter import Meter

SECONDS = 0.6127349  # of 20 steps: 15,360 / SECONDS, rounded, times seconds a step, rounded, is not 15,360


def make(
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
    lines: list[dict[str, Any]] = (),
    peak: float = 1e9,
    source: int = 0,
) -> Meter:
    monkeypatch.setattr(meter, "row_lengths", lambda *args: (source, 64))
    expected = ("model", 64, 0.5, source)
    monkeypatch.setattr(meter, "train_flops_per_token", lambda *given: 1000.0 if given == expected else None)
    monkeypatch.setattr(meter, "peak_flops", lambda: (peak, "made up"))
    clock = types.SimpleNamespace(lost={"data": 0.0}, goodput=0.51234567, laps=0)

    def lap() -> float:
        clock.laps += 1
        return SECONDS

    clock.lap = lap
    config = types.SimpleNamespace(train=types.SimpleNamespace(batch_size=16))
    objective = NextTokenOfDecoder()
    objective.target_fraction = 0.5
    examples = types.SimpleNamespace(num_examples=100)
    start = lines[-1]["step"] if lines else 0
    made = Meter(config, objective, "model", examples, start, log.append, clock, lines)
    assert clock.laps == 1  # the first window begins here
    return made


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
    assert [line["epoch"] for line in lines] == [3.2, 6.4] and lines[0]["goodput"] == 0.5123
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


def test_waits_for_data_are_those_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 s before the first line, of which 1 s was before the first step; then 5 s more in 20 steps."""
    one = make(monkeypatch, [])
    one.waited = 1.0
    found = []
    for step, lost in ((20, 4.0), (40, 9.0)):
        one.clock.lost["data"] = lost
        found.append(one.line(step, window(9), lambda step: 0.1)["data_seconds"])
    assert found == [3 / 20, 5 / 20]


def test_what_is_counted_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for source in (0, 32):
        make(monkeypatch, log, peak=2e12, source=source)
    assert [line.split("only: ")[1] for line in log] == ["1e+03 FLOP a token", "1e+03 FLOP a token of rows of 32 + 64"]
    assert all("real tokens/s / 2e+12 FLOP/s (made up)" in line for line in log)
    make(monkeypatch, log, peak=None)
    assert len(log) == 2


def test_a_mixture_has_an_epoch_for_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(monkeypatch, [])
    monkeypatch.setattr(meter, "Mixture", types.SimpleNamespace)
    one.examples.epochs = lambda step: {"en": step / 10, "de": step / 40}
    line = one.line(20, window(9), lambda step: 0.1)
    assert (line["epoch_en"], line["epoch_de"], line["epoch"]) == (2.0, 0.5, 3.2)


def test_times_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.array([[0.5, 0.01], [0.2500049, 0.0300051], [1.0000049, 0.02]])
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda own: times if own.tolist() == [0.5, 0.01] else None
    )
    expected = {"step_seconds_min": 0.25, "step_seconds_max": 1.0, "data_seconds_max": 0.03001, "data_process": 1}
    assert meter.process_spread(0.5, 0.01) == expected


@pytest.mark.parametrize(("source", "lengths"), [(None, (0, 64)), (24, (24, 16))])
def test_tokens_and_flops_of_a_step(
    source: int | None, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 rows of 64 tokens, or of 24 + 16, at 10 FLOP a token."""
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(meter, "train_flops_per_token", lambda *args: given.append(args) or 10.0)
    config = types.SimpleNamespace(train=types.SimpleNamespace(batch_size=8), data=types.SimpleNamespace(max_length=64))
    definition = types.SimpleNamespace(arch=types.SimpleNamespace(encoder=source))
    row = {"source_tokens_BS": np.zeros((1, 24)), "tokens_BL": np.zeros((1, 16))}
    examples = types.SimpleNamespace(batch=lambda epoch, index: row)
    objective = types.SimpleNamespace(target_fraction=0.15)
    tokens = 8 * sum(lengths)
    assert meter.step_size(config, objective, definition, examples) == (tokens, 10.0 * tokens)
    assert given == [(definition, lengths[1], 0.15, lengths[0])]

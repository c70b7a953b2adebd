"""`fit` itself: its return value, and the order of callbacks in the loop."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

import jax
import pytest

from helpers.train_helpers import EVALUATE, LOG, SAVE, STEPS, Lab, summary
from lm_research import cli
from lm_research.run import meter
from lm_research.run.callbacks import Callback, StepCall
from lm_research.run.fit import FitResult, fit


class Told(Callback):
    """Record the calls it receives."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_step_begin(self, call: StepCall) -> None:
        assert int(call.state["step"]) == call.number - 1 and call.batch["tokens_BL"].shape == (1, 8, 32)
        self.calls.append(("begin", call.number))

    def on_step_end(self, step: int, state: Any) -> None:
        assert int(state["step"]) == step
        self.calls.append(("end", step))

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        assert values["loss_nats"] > 0
        self.calls.append(("log", step))

    def on_evaluate(self, step: int, scores: Mapping[str, float]) -> None:
        assert scores["eval_loss_nats"] > 0
        self.calls.append(("evaluate", step))

    def on_save(self, step: int) -> None:
        self.calls.append(("save", step))

    def on_train_end(self, step: int) -> None:
        self.calls.append(("train end", step))


@pytest.fixture
def call(lab: Lab, tmp_path: pathlib.Path) -> Any:
    """`Call `fit` on the tiny run as the command does, with more flags and a recording callback."""

    def run(told: Told, *flags: str) -> FitResult:
        config, workdir = cli.parse([*lab.flags(), f"--workdir={tmp_path}", *flags])
        mesh, precision = jax.sharding.get_mesh(), jax.config.jax_default_matmul_precision
        with mock.patch.object(meter, "peak_flops", lambda: (1e12, "made up")):
            try:
                return fit(config, workdir, [told])
            finally:
                jax.set_mesh(mesh)
                jax.config.update("jax_default_matmul_precision", precision)

    return run


def expected(start: int, stop: int) -> list[tuple[str, int]]:
    """Evaluate, save, step, write: the order that loop.py documents for each step."""
    calls: list[tuple[str, int]] = []
    for step in range(start, stop + 1):
        last = step == stop
        if step > start:
            calls += [("evaluate", step)] * (last or step % EVALUATE == 0)
            calls += [("save", step)] * (last or step % SAVE == 0)
        if not last:
            calls += [("begin", step + 1), ("end", step + 1)]
            calls += [("log", step + 1)] * ((step + 1) % LOG == 0)
    return [*calls, ("train end", stop)]


def test_callbacks_are_called_in_the_order_of_the_loop_and_again_after_a_resume(
    call: Any, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first, second = Told(), Told()
    paused = call(first, "--config.train.stop_after=13")
    assert (paused.status, paused.summary["step"], paused.workdir) == ("paused", 13, tmp_path)
    assert first.calls == expected(0, 13)
    done = call(second)
    assert second.calls == expected(13, STEPS)
    assert done.status == "finished" and done.summary == summary(tmp_path)
    assert done.summary["digests"] == summary(bert_run)["digests"]  # watching changes nothing

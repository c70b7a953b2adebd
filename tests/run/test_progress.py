"""What a user sees: log lines, and traces of the requested steps."""

from __future__ import annotations

import io
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from lm_research.run.callbacks import StepCall
from lm_research.run.logger import RunLogger
from lm_research.run.profiler import Profiler
from lm_research.run.progress import Progress


def test_lines_are_printed_and_stored_with_the_time(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLogger(tmp_path)
    log("one\ntwo")
    log()
    assert capsys.readouterr().out == "one\ntwo\n\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in lines] == ["one", "two", ""]
    assert all(line[:4].isdigit() and line[4] == "-" and line[13] == ":" for line in lines)
    RunLogger(tmp_path)("three")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4


def test_other_processes_print_nothing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunLogger(tmp_path, main_process=False)("one")
    assert capsys.readouterr().out == ""


def test_plain_lines_without_a_terminal(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 of 50 steps remain after step 20: a minute at 2 s each."""
    progress = Progress(0, 50, RunLogger(tmp_path))
    values = {
        "loss_nats": 2.5,
        "learning_rate": 1e-3,
        "grad_norm": 0.75,
        "tokens_per_second": 12345.6,
        "step_seconds": 2.0,
    }
    progress.reach(20)
    progress.on_log(20, values)
    progress.on_log(20, {**values, "mfu": 0.5})
    progress.on_train_end(20)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step     20/50  loss 2.5000  lr 1.00e-03  grad 0.75  12,346 tok/s  eta 0:01:00"
    assert "mfu 50.0%" in second


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_whose_end_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    Progress(0, 50, print).on_train_end(50)
    assert "50/50" in sys.stdout.getvalue()


@pytest.mark.parametrize("main", [True, False])
def test_a_bar_on_a_terminal(main: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 10 of 50, whose end moves to 40; only the main process shows it, and no line is written."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines: list[str] = []
    progress = Progress(10, 50, lines.append, main)
    progress.retarget(40)
    progress.reach(30)
    values = {"loss_nats": 2.5, "learning_rate": 1e-3, "grad_norm": 0.75, "tokens_per_second": 9.0, "step_seconds": 2.0}
    progress.on_log(30, values)
    progress.on_train_end(40)
    shown = sys.stdout.getvalue()
    assert ("40/40" in shown and "loss 2.5000  lr 1.00e-03" in shown) == main and bool(shown) == main
    assert lines == ([] if main else ["step     30/40  loss 2.5000  lr 1.00e-03  grad 0.75  9 tok/s  eta 0:00:20"])


@pytest.mark.parametrize(
    ("asked", "steps", "traced"),
    [
        (None, range(1, 4), False),
        ((2, 3), range(1, 5), True),
        ((2, 3), range(3, 5), True),  # a run that resumes inside the range
        ((2, 9), range(1, 4), True),  # a run that ends inside the range
        ((2, 3), range(5, 8), False),  # a run that resumes after it
        ((8, 9), range(1, 4), False),
    ],
)
def test_profiler(tmp_path: pathlib.Path, asked: tuple | None, steps: range, traced: bool) -> None:
    profiler = Profiler(asked, tmp_path)
    for step in steps:
        profiler.on_step_begin(StepCall(step, {}, {}, dict))
        profiler.on_step_end(step, {"step": jnp.ones(3) + step})
    profiler.on_train_end(max(steps))
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == traced
    jax.profiler.start_trace(str(tmp_path / "mine"))  # none is still running
    jax.profiler.stop_trace()

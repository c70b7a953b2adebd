"""train.budget: arithmetic for FLOPs and tokens; for time, simulated machines with a clock of their own."""

from __future__ import annotations

import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.train_helpers import Lab, checkpoints, metrics, same, summary
from lm_research import config as config_lib
from lm_research.config import Budget, Config, resolve
from lm_research.data.mixture import Mixture, Stage
from lm_research.data.sampler import Examples
from lm_research.errors import ConfigError
from lm_research.run import goodput, time_budget
from lm_research.run.budget import StepBudget, check_epochs, resolve_budget, resolve_steps
from lm_research.run.goodput import RunHistory, TimeAccount
from lm_research.run.time_budget import TimeBudget, schedule_position
from lm_research.training.schedules import make_schedule


class Numbered(Examples):
    """Examples of which only the number matters."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError


def config_of(text: str, **sections: Any) -> Config:
    return resolve({"train": {"budget": text}} | sections)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("30min", 1800, "seconds"),
        ("2h", 7200, "seconds"),
        (" 1.5 H ", 5400, "seconds"),
        ("1e18flops", 1e18, "flops"),
        ("3E+2FLOPs", 300, "flops"),
        ("2e9tokens", 2e9, "tokens"),
    ],
)
def test_amounts(text: str, amount: float, unit: str) -> None:
    assert config_lib.parse_budget(config_of(text)) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text", ["3", "min", "3 minutes", "-3min", "0s", "1e999s", "3min30", "1e18", "3m", "nantokens"]
)
def test_an_invalid_amount_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="train.budget") as caught:
        config_of(text)
    for example in ("90s", "30min", "2h", "1e18flops", "2e9tokens"):
        assert example in str(caught.value)


def test_more_passes_than_the_limit_are_refused() -> None:
    """26 steps of 4 are the last ones that begin within one pass over 101 examples; a budget of time says nothing about passes."""
    limited = resolve({"train": {"num_steps": 26, "batch_size": 4, "max_epochs": 1.0}})
    check_epochs(limited, Numbered(101))
    with pytest.raises(ConfigError, match="26 steps of 4 .* 100 training examples 1.04 times, .* allows 25 steps"):
        check_epochs(limited, Numbered(100))
    check_epochs(config_lib.replace(limited, train={"max_epochs": 1.04}), Numbered(100))
    check_epochs(config_lib.replace(limited, train={"max_epochs": None}), Numbered(1))
    with pytest.raises(ConfigError, match="2h is a time"):
        check_epochs(config_of("2h", train={"budget": "2h", "max_epochs": 1.0}), Numbered(100))


def test_no_source_of_a_mixture_is_read_more_often_than_the_limit() -> None:
    """25 steps of 40 read 1,000 examples once in all, but half of them are those of a source of 100, five times."""
    config = resolve({"train": {"num_steps": 25, "batch_size": 40, "max_epochs": 2.0}})
    sources = {"small": Numbered(100), "large": Numbered(900)}
    check_epochs(config, Mixture(sources, [Stage(0, (0.1, 0.9))], 40))
    halves = Mixture(sources, [Stage(0, (0.5, 0.5))], 40)
    with pytest.raises(ConfigError, match="25 steps read the source small .* 4.8 times, but train.max_epochs=2"):
        check_epochs(config, halves)
    check_epochs(config_lib.replace(config, train={"max_epochs": 5.0}), halves)
    late = Mixture(sources, [Stage(0, (0.1, 0.9)), Stage(20, (0.9, 0.1))], 40)  # 80 rows, then 144 in 4 steps
    with pytest.raises(ConfigError, match="small .* 2.24 times"):
        check_epochs(config, late)
    proportional = Mixture(sources, [Stage(0, (0.1008, 0.8992))], 40)  # 10.08 passes over one source
    check_epochs(config_lib.replace(config, train={"num_steps": 250, "max_epochs": 10.0}), proportional)


def test_epochs_together_with_a_budget_are_refused() -> None:
    with pytest.raises(ConfigError, match="both set the number of steps"):
        resolve({"train": {"budget": "2h", "num_epochs": 1.0}})


def test_tokens_and_flops_are_arithmetic() -> None:
    def steps(text, **more):
        return resolve_budget(config_of(text, **more), tokens=256, flops=1e6).train.num_steps

    assert steps("2600tokens") == 10  # 10.16
    assert steps("7.5e6flops") == 7
    assert resolve_budget(Config(), 256, 1e6) == Config()
    assert resolve_budget(config_of("2h"), 256, 1e6).train.num_steps == Config().train.num_steps
    with pytest.raises(ConfigError, match="less than one step, which takes 256 tokens"):
        steps("255tokens")
    with pytest.raises(ConfigError, match="allows 10 steps here, fewer than schedule.warmup_steps=11"):
        steps("2600tokens", schedule={"warmup_steps": 11})
    assert steps("2600tokens", schedule={"warmup_steps": 10}) == 10


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 13), (2.0, 25), (0.5, 7), (0.64, 8), (None, 1000), (0.0, 1000)])
def test_epochs_are_steps_rounded_up(epochs: float | None, steps: int) -> None:
    """100 examples in batches of 8 are 12.5 steps."""
    config = resolve({"train": {"num_epochs": epochs, "batch_size": 8, "num_steps": 1000}})
    assert resolve_steps(config, 100).train.num_steps == steps


def test_a_budget_has_at_most_as_many_steps_as_an_int32_counts() -> None:
    assert resolve_budget(config_of("1e30flops"), tokens=1, flops=1.0).train.num_steps == 2**31 - 2


def test_a_budget_of_tokens_equals_a_run_of_that_many_steps(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """20 steps of 8 rows of 32 tokens are 5120 tokens; and the workdir accepts the run again."""
    flags = ("--config.train.budget=5120tokens", "--config.train.num_steps=1")
    for _ in range(2):
        assert lab.train(tmp_path, *flags) == 0
        assert same(bert_run, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 20


# ------------------------------------------------------------------------------------------- the schedule


def test_positions() -> None:
    """From 50 of 100, 25 steps cover the remaining 50 places, 2 each; from place 70, 40 steps cover the remaining 30, 0.75 each."""
    assert schedule_position([(0, 100)]).tolist() == [0, 0, 1, 100]
    assert schedule_position([(0, 100), (50, 75)]).tolist() == [50, 50, 2, 100]
    assert schedule_position([(0, 100), (50, 75), (60, 100)]).tolist() == [60, 70, 0.75, 100]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("warmup", [{"warmup_ratio": 0.1}, {"warmup_steps": 10}, {}])
def test_the_schedule_of_a_plan_equals_that_of_as_many_steps(name: str, warmup: dict[str, float]) -> None:
    plain = make_schedule(resolve({"train": {"num_steps": 100}, "schedule": {"name": name, **warmup}}))
    planned = make_schedule(config_of("2h", schedule={"name": name, **warmup}))
    step = jnp.arange(100)
    np.testing.assert_allclose(planned(step, schedule_position([(0, 100)])), plain(step), rtol=1e-6)
    # Twice as fast from step 40 on: step 60 is where step 80 would be, and there is no jump at 40.
    faster = schedule_position([(0, 100), (40, 70)])
    np.testing.assert_allclose(planned(jnp.array([40, 60]), faster), plain(jnp.array([40, 80])), rtol=1e-5)


# ------------------------------------------------------------------------------------------- time


class Machine:
    """A clock and the cost of each activity in seconds; `step` is a function of the seconds so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: Callable[[float], float]) -> None:
        self.now, self.step = 1000.0, step
        for module in (time_budget, goodput):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def work(self) -> np.ndarray:
        self.now += self.step(self.now - 1000.0)
        return np.zeros(())


COSTS = {"start": 9.0, "compile": 12.0, "eval": 4.0, "checkpoint": 1.5, "down": 500.0}
CONFIG = {"eval": {"every_steps": 300}, "checkpoint": {"every_steps": 200}, "logging": {"every_steps": 20}}


def live(
    machine: Machine, workdir: pathlib.Path, seconds: int, start: int = 0, stop: int | None = None
) -> tuple[TimeBudget, int, list[str], float]:
    """Simulate one process of a run as in run/fit.py, from a checkpoint at `start` to the end, or until it is killed after `stop`."""
    config, log = config_of(f"{seconds}s", **CONFIG), []
    born = machine.now
    machine.now += COSTS["start"]
    clock = TimeAccount(born)
    lives = RunHistory(workdir, clock, start)
    course = time_budget.make_budget(config, workdir, start, clock, lives, None, log.append)
    with clock.paused("compile"):
        machine.now += COSTS["compile"]
    if course.needs_calibration:
        course.calibrate(machine.work, eval_batches=10)
    step = start
    while True:
        if step > start and (step % 300 == 0 or step == course.end):
            with clock.paused("eval"):
                machine.now += COSTS["eval"]
        if step > start and (step % 200 == 0 or step == course.end):
            with clock.paused("checkpoint"):
                machine.now += COSTS["checkpoint"]
        if step in (course.end, stop):
            break
        machine.work()
        step += 1
        course.update(step, {"step": np.zeros(())})
    lives.write(step)
    return course, step, log, machine.now - born


@pytest.mark.parametrize(
    "step",
    [
        lambda now: 0.1,
        lambda now: 0.1 if now < 80 else 0.25,  # slower from there on
        lambda now: 0.1 if now < 80 else 0.04,  # faster
        lambda now: 0.1 if now < 165 else 0.3,  # slower close to the end
        lambda now: 0.1 * (1 + 0.8 * math.sin(now)),  # varying speed
        lambda now: 6.0,  # few steps
    ],
)
def test_a_run_ends_on_time(
    step: Callable[[float], float], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """180 s, with 9 s before and 12 s of compiling, on a machine that changes; 3% off at most."""
    machine = Machine(monkeypatch, step)
    course, steps, log, seconds = live(machine, tmp_path, 180)
    early = (
        6 if step(0) < 1 else 36
    )  # the cost of evaluations and checkpoints is unknown before the only ones, so a margin is kept
    assert 180 - early < seconds < 180 + 6
    assert json.loads((tmp_path / "budget.json").read_text())["num_steps"] == steps == course.end
    told = int(re.match(r"budget: ([\d,]+) steps", log[-1])[1].replace(",", ""))
    assert told == pytest.approx(steps, rel=0.035)  # the file has the smaller corrections
    at, place, pace, length = course.schedule_args[0].tolist()
    assert place + (steps - at) * pace == pytest.approx(length, rel=1e-5)  # the schedule ends with the run


def test_a_steady_machine_keeps_its_first_plan_and_number_of_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything costs what the plan assumes: an evaluation 10 batches of a third of a step, a checkpoint 1 s and a step.

    From 600 s are subtracted: 9 for the start, 0.5 for compiling and as much reserved for the first evaluation, 3.1 for about 1 + 1 + 29 timed
    steps, and at the end an evaluation, two checkpoints and half a hundredth: 581.4 s.
    """
    for name, cost in {"eval": 1 / 3, "checkpoint": 1.1, "compile": 0.5}.items():
        monkeypatch.setitem(COSTS, name, cost)
    machine = Machine(monkeypatch, lambda now: 0.1)
    course, steps, _, _ = live(machine, tmp_path, 600)
    assert steps == pytest.approx(581.4 / (0.1 + 1 / 900 + 1.1 / 200), abs=3)
    assert course.schedule_args[0].tolist() == [0, 0, 1, steps]


def test_a_resumed_run_spends_what_is_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after step 500, resumed from 400 ten minutes later: 100 steps, a start and a compilation shorter than planned."""
    machine = Machine(monkeypatch, lambda now: 0.1)
    first, _, _, before = live(machine, tmp_path, 180, stop=500)
    planned = first.end
    machine.now += COSTS["down"]
    second, steps, log, after = live(machine, tmp_path, 180, start=400)
    assert before + after == pytest.approx(180, abs=6)
    lost = (COSTS["start"] + COSTS["compile"]) / 0.1 + 100
    assert steps == pytest.approx(planned - lost, abs=120)  # either plan may be off by its tolerance
    assert "s of it left for steps 400 to" in log[0]


def test_a_run_without_time_left_ends_after_one_more_step(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, lambda now: 0.1)
    live(machine, tmp_path, 180, stop=500)
    (life,) = json.loads((tmp_path / "time.json").read_text())
    life["seconds"]["steps"] = 200.0
    (tmp_path / "time.json").write_text(json.dumps([life]))
    _, steps, _, _ = live(machine, tmp_path, 180, start=400)
    assert steps == 401


def test_a_finished_run_has_nothing_left_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda now: 0.1)
    course, steps, _, _ = live(machine, tmp_path, 60)
    before = (tmp_path / "budget.json").read_text()
    again, last, _, _ = live(machine, tmp_path, 60, start=steps)
    assert (again.end, last) == (steps, steps) and (tmp_path / "budget.json").read_text() == before


def test_a_finished_run_continues_with_a_larger_budget(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """180 s are spent; with 360 s it takes that many steps again, on the schedule of a run planned to end there."""
    machine = Machine(monkeypatch, lambda now: 0.1)
    _, first, _, seconds = live(machine, tmp_path, 180)
    course, steps, log, more = live(machine, tmp_path, 360, start=first)
    assert steps == pytest.approx(2 * first, rel=0.1) and 360 - 12 < seconds + more < 360 + 6
    stored = json.loads((tmp_path / "budget.json").read_text())
    assert stored["budget"] == "360s" and stored["plans"][0]["step"] == 0
    assert [plans["budget"] for plans in stored["earlier"]] == ["180s"] and stored["earlier"][0]["plans"][-1][
        "end"
    ] == first
    at, place, pace, length = course.schedule_args[0].tolist()
    assert place + (steps - at) * pace == pytest.approx(length, rel=1e-5)
    assert length == pytest.approx(stored["plans"][0]["end"])
    assert live(machine, tmp_path, 360, start=steps)[1] == steps  # and finishes again


def test_plans_after_the_checkpoint_are_forgotten(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [{"step": 0, "end": 1000}, {"step": 300, "end": 900}, {"step": 500, "end": 700}]
    (tmp_path / "budget.json").write_text(json.dumps({"plans": plans}))
    machine = Machine(monkeypatch, lambda now: 0.1)
    clock = TimeAccount(machine.now)
    ends = {
        start: time_budget.make_budget(
            config_of("600s"), tmp_path, start, clock, RunHistory(tmp_path, clock, start), None, print
        ).end
        for start in (0, 299, 300, 499, 500)
    }
    assert ends == {0: 1000, 299: 1000, 300: 900, 499: 900, 500: 700}


def test_a_budget_that_the_start_uses_up_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"train.budget=20s is used up before the first step: 22 s for reading"):
        live(Machine(monkeypatch, lambda now: 0.1), tmp_path, 20)


def test_without_a_time_limit_the_end_is_known_in_advance() -> None:
    course = time_budget.make_budget(resolve({"train": {"num_steps": 7}}), pathlib.Path(), 0, *[None] * 4)
    assert type(course) is StepBudget and (course.end, course.last, course.device_args, course.needs_calibration) == (
        7,
        7,
        (),
        False,
    )
    assert course.update(3, None) is False


def test_a_timed_run_trains_saves_and_resumes_according_to_its_plan(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million seconds less half a hundredth are 23.55 steps of 42,250 s: 1 for the last evaluation and 20.5 times 1.1, so 20.

    An evaluation of 3 batches counts as a step, one every 10. Checkpoints and compiling take negligible time by comparison.
    """
    monkeypatch.setattr(time_budget, "_seconds", lambda take, count: (take(), 42_250.0)[1])
    monkeypatch.setattr(TimeBudget, "update", lambda self, step, state: False)
    flags = ("--config.train.budget=1000000s", "--config.train.num_steps=7")
    run = tmp_path / "run"
    assert lab.train(run, *flags) == 0
    assert json.loads((run / "budget.json").read_text())["plans"] == [{"step": 0, "end": 20}]
    assert (summary(run)["status"], summary(run)["step"]) == ("finished", 20) and checkpoints(run) == [6, 12, 18, 20]
    assert (
        json.loads((run / "config.json").read_text())["train"]["num_steps"] == 7
    )  # as configured: it stays the same run
    # The timed steps left no trace: it equals the run of 20 steps, except for the last bits of the learning rate.
    for a, b in zip(metrics(run), metrics(bert_run), strict=True):
        assert a["step"] == b["step"]
        assert all(a[name] == pytest.approx(b[name], rel=1e-4) for name in a if name.endswith(("_nats", "_rate")))
    shutil.copytree(run, tmp_path / "killed")
    for step in (12, 18, 20):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(step))
    (tmp_path / "killed" / "summary.json").unlink()
    assert lab.train(tmp_path / "killed", *flags) == 0
    assert same(run, tmp_path / "killed")

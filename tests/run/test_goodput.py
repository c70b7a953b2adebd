"""Where the time goes, with a clock that the tests control."""

from __future__ import annotations

import json
import pathlib
import sys
import types

import pytest

from lm_research.run import goodput
from lm_research.run.goodput import RunHistory, TimeAccount, describe_times, read_lives, total_time


class Turned:
    """Stand-in for the module `time`: seconds pass only on command."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000.0 + self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Turned:
    turned = Turned()
    monkeypatch.setattr(goodput, "time", turned)
    return turned


def test_time_goes_to_steps_or_to_a_cause(hands: Turned) -> None:
    clock = TimeAccount(born=90.0)  # 10 s so far
    hands.now += 4.0
    with clock.paused("compile"):
        hands.now += 3.0
    with clock.waiting(idle=True):
        hands.now += 1.0
    with clock.waiting(idle=False):  # hidden behind the device's work
        hands.now += 2.0
    with clock.paused("eval"):
        hands.now += 5.0
    assert clock.account() == {
        "steps": 6.0,
        "start": 10.0,
        "compile": 3.0,
        "data": 1.0,
        "eval": 5.0,
        "checkpoint": 0.0,
        "check": 0.0,
    }
    assert clock.goodput == pytest.approx(6.0 / 25.0)
    assert clock.lap() == 7.0  # waiting for a batch is part of a step's time, pauses are not
    assert clock.lap() == 0.0


def test_a_failure_inside_a_pause_ends_it(hands: Turned) -> None:
    clock = TimeAccount(born=100.0)
    with pytest.raises(ValueError), clock.paused("eval"):
        hands.now += 3.0
        raise ValueError
    assert clock.lap() == 0.0 and clock.lost["eval"] == 3.0


def test_a_crash_costs_the_repeated_steps_and_the_time_between(hands: Turned, tmp_path: pathlib.Path) -> None:
    """30 steps of 1 s, the last 10 not saved; 20 s later the next process resumes from step 20."""
    clock = TimeAccount(born=100.0)
    lives = RunHistory(tmp_path, clock, first=0)
    hands.now += 30.0
    lives.write(30)
    hands.now += 20.0
    second = TimeAccount(born=hands.now)
    again = RunHistory(tmp_path, second, first=20)
    with second.paused("compile"):
        hands.now += 6.0
    hands.now += 40.0
    again.write(60)
    expected = dict(
        steps=60.0, start=0.0, compile=6.0, data=0.0, eval=0.0, checkpoint=0.0, check=0.0, repeated=10.0, down=20.0
    )
    assert again.total() == pytest.approx(expected)
    text = (tmp_path / goodput.FILE).read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"  # a line for each value
    assert total_time(read_lives(tmp_path)) == pytest.approx(expected)
    assert set(total_time([]).values()) == {0.0}  # of a run that was stopped before its first step
    assert describe_times(expected) == "62.5% of 0:01:36 in steps, down 20.8%, repeated 10.4%, compile 6.2%"


def test_repeated_steps_are_only_those_of_the_previous_process() -> None:
    """Steps 20 to 30 in 20 s, then from step 0 on: ten are repeated, not thirty. The machine's clock was set back: no time between is counted as lost."""
    lives = [
        {"begin": 0.0, "first": 20, "end": 30.0, "last": 30, "seconds": {"steps": 20.0, "eval": 10.0}},
        {"begin": 25.0, "first": 0, "end": 60.0, "last": 40, "seconds": {"steps": 35.0}},
        {"begin": 64.0, "first": 40, "end": 65.0, "last": 41, "seconds": {"steps": 1.0}},
    ]
    found = {name: seconds for name, seconds in total_time(lives).items() if seconds}
    assert found == {"steps": 36.0, "eval": 10.0, "repeated": 20.0, "down": 4.0}
    lives = [{"begin": 0.0, "first": 5, "end": 3.0, "last": 5, "seconds": {"steps": 3.0}}] * 2  # no step was taken
    assert total_time(lives)["repeated"] == 0 and total_time(lives)["steps"] == 6
    assert describe_times({"steps": 7000.0, "eval": 3.0, "compile": 262.0}) == "96.4% of 2:01:05 in steps, compile 3.6%"


def test_the_account_is_written_periodically(hands: Turned, tmp_path: pathlib.Path) -> None:
    lives = RunHistory(tmp_path, TimeAccount(born=100.0), first=0)
    for step in range(1, 31):
        hands.now += 1.0
        lives.write(step, now=False)
    assert [life["last"] for life in json.loads((tmp_path / goodput.FILE).read_text())] == [23]  # after 1, 12 and 23 s
    RunHistory(tmp_path, TimeAccount(born=100.0), first=30).write(30)  # a finished run, started again
    assert len(read_lives(tmp_path)) == 1
    RunHistory(tmp_path / "other", TimeAccount(born=100.0), first=0, main_process=False).write(
        5
    )  # has no folder, and writes none


@pytest.mark.parametrize(
    ("name", "stat", "age"),
    [
        ("lm_research.train", "7 (a (b) c) " + "0 " * 19 + "5000 0", 30.0),
        ("lm_research.train", "7 (python) " + "0 " * 19 + "8000 0", 0.0),  # of this moment
        ("lm_research.train", "7 (python) " + "0 " * 19 + "9000 0", 0.0),  # later than now
        ("lm_research.train", "7 (python) " + "0 " * 19 + "-60000 0", 0.0),  # too long ago to have waited for imports
        ("lm_research.train", "7 (python) S", 0.0),
        ("pytest.__main__", "7 (python) " + "0 " * 19 + "5000 0", 0.0),
    ],
)
def test_a_command_begins_with_its_process(
    name: str, stat: str, age: float, hands: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proc(5): field 22 counts ticks, here of 10 ms, since boot, here 80 s ago."""
    module = types.SimpleNamespace(__spec__=types.SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(goodput.pathlib.Path, "read_text", lambda path: stat)
    monkeypatch.setattr(goodput.os, "sysconf", lambda name: 100)
    hands.clock_gettime, hands.CLOCK_BOOTTIME = (lambda clock: 80.0), 7
    assert goodput.process_start_time() == hands.now - age
    module.__spec__ = None
    assert goodput.process_start_time() == hands.now


@pytest.mark.parametrize(
    "text", ['[{"begin": 1', '[{"begin": 1, "first": 0, "end": 2, "last": 1, "seconds": {"eval": 1}}]', "[" * 100_000]
)
def test_a_torn_account_starts_over(text: str, tmp_path: pathlib.Path, hands: Turned) -> None:
    (tmp_path / goodput.FILE).write_text(text)
    RunHistory(tmp_path, TimeAccount(born=100.0), first=0).write(5)
    assert [life["last"] for life in read_lives(tmp_path)] == [5]
    assert (tmp_path / f"{goodput.FILE}.damaged").read_text() == text

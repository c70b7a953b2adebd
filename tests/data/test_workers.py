"""Work on several processes: order, errors, and no process left behind."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lm_research.data.workers import WorkerDied, available_cpus, map_in_order


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fails_at_5(number: int) -> int:
    if number == 5:
        raise ValueError("not five")
    return number


def dies_at_5(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleeps(path: str) -> None:
    (pathlib.Path(path) / str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order(workers: int) -> None:
    assert list(map_in_order(square, range(20), workers)) == [n * n for n in range(20)]
    assert list(map_in_order(square, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_exceptions_are_raised_where_they_are_due(workers: int) -> None:
    results = map_in_order(fails_at_5, range(20), workers)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="not five"):
        next(results)


def test_items_are_read_only_a_few_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = map_in_order(square, items(), 2)
    assert next(results) == 0 and len(read) <= 7
    results.close()


def test_killed_worker() -> None:
    with pytest.raises(WorkerDied, match="One of 2 worker processes was killed.*same command again"):
        list(map_in_order(dies_at_5, range(20), 2))


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: pathlib.Path) -> None:
    code = "from test_workers import map_in_order, sleeps\n"
    code += f"if __name__ == '__main__': list(map_in_order(sleeps, [{str(tmp_path)!r}] * 2, 2))"
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(code)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(pathlib.Path(__file__).parent), os.environ["PYTHONPATH"]))
    }
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    limit = time.monotonic() + 30
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(pids) == 2 and all(map(alive, pids))
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_tasks_that_are_not_needed_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of the first task are enough; the pool is given up without the others, but with the running ones."""
    ended: list[dict[str, bool]] = []

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, workers: int, *_: object, **__: object) -> None:
            super().__init__(workers)

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ended.append({"wait": wait, "cancel_futures": cancel_futures})
            super().shutdown(wait=wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    results = map_in_order(abs, [-1, -2, -3], workers=2)
    assert next(results) == 1
    results.close()
    assert ended == [{"wait": True, "cancel_futures": True}]


def test_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS has none
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert available_cpus() == expected

"""The loader: order, resuming, equality of threads and processes, exceptions, a clean end."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from lm_research.data import loader
from lm_research.data.loader import load


def squares(step: int) -> dict[str, np.ndarray]:
    assert type(step) is int
    return {"step": np.full(3, step), "square": np.arange(4) * float(step) ** 2}


def fails_at_7(step: int) -> dict[str, np.ndarray]:
    if step == 7:
        raise ValueError("no batch 7")
    return squares(step)


def slow_when_even(step: int) -> dict[str, np.ndarray]:
    time.sleep(0.01 * (step % 2 == 0))
    return squares(step)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_order_is_that_of_the_steps(prefetch: int) -> None:
    assert [int(batch["step"][0]) for batch in load(slow_when_even, 3, 40, prefetch=prefetch)] == list(range(3, 40))


def test_resuming_continues_with_the_same_batches() -> None:
    whole = list(load(squares, 0, 12))
    for late, batch in zip(load(squares, 5, 12), whole[5:], strict=True):
        assert all(np.array_equal(late[name], batch[name]) for name in batch)


def test_a_late_start_replays_nothing() -> None:
    made: list[int] = []

    def record(step: int) -> dict[str, np.ndarray]:
        made.append(step)
        return squares(step)

    first = list(itertools.islice(load(record, 10**6, 10**12), 3))
    assert [int(batch["step"][0]) for batch in first] == [10**6, 10**6 + 1, 10**6 + 2]
    assert min(made) == 10**6 and len(made) < 20


def test_nothing_to_load() -> None:
    assert list(load(squares, 5, 5)) == []


def test_exceptions_are_raised_where_their_batch_is_due() -> None:
    batches = load(fails_at_7, 5, 20)
    assert [int(next(batches)["step"][0]) for _ in range(2)] == [5, 6]
    with pytest.raises(ValueError, match="no batch 7"):
        next(batches)


def test_worker_processes_make_the_same_batches() -> None:
    """One start of the processes covers all: order, equality, ownership of the memory, and the exception."""
    batches, got = load(fails_at_7, 0, 12, num_workers=2), []
    with pytest.raises(ValueError, match="no batch 7"):
        for batch in batches:
            got.append(batch)
    assert len(got) == 7
    for batch, expected in zip(got, load(squares, 0, 7), strict=True):
        assert batch.keys() == expected.keys()
        assert all(np.array_equal(batch[name], expected[name]) for name in expected)
        assert all(type(value) is np.ndarray and value.flags.writeable for value in batch.values())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_abandoned_iterator_does_not_hold_up_the_exit(num_workers: int) -> None:
    code = (
        "import sys\n"
        "from test_loader import load, squares\n"
        "if __name__ == '__main__':\n"
        "    kept = load(squares, 0, 10**9, num_workers=int(sys.argv[1]))\n"
        "    closed = load(squares, 0, 10**9); next(closed); closed.close()\n"
        "    print(next(kept)['step'])\n"
    )
    arguments = [sys.executable, "-c", code, str(num_workers)]
    here = pathlib.Path(__file__).parent
    done = subprocess.run(arguments, cwd=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "[0 0 0]"
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr


def test_open_iterators_are_closed_at_exit() -> None:
    """While the modules that they need are still there."""
    batches = load(squares, 0, 10)
    next(batches)
    loader._close_all()
    assert list(batches) == []

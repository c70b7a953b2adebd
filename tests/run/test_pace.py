"""At most two steps are in flight, and a step reported as finished is finished."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import pytest

from lm_research.run import pace


class Held:
    """A step's result, finished when the test decides."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def block_until_ready(self) -> None:
        assert self.gate.wait(60)


def test_a_third_step_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Held() for _ in range(3)]
    monkeypatch.setattr(pace, "_copy", lambda step: held[int(step)])
    keeper = pace.Pace(0)
    for step in (1, 2):
        assert keeper.wait() == 0
        keeper.on_step_end(step, {"step": jnp.int32(step)})
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(keeper.wait()))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not found  # neither step is done
    held[2].gate.set()
    waiting.join(0.1)
    assert waiting.is_alive()  # the first is waited for
    held[1].gate.set()
    waiting.join(60)
    assert found == [1] and keeper.wait() == 1  # the second may be in flight while the third begins

"""Every schedule at every step, by its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.config import resolve
from lm_research.training.schedules import make_schedule, warmup_steps


def rates(steps: range, position: list[float] | None = None, peak: float | None = None, **schedule: Any) -> list[float]:
    """Of a run of 10 steps with a peak of 8."""
    config = resolve({"train": {"num_steps": 10}, "optimizer": {"learning_rate": 8.0}, "schedule": schedule})
    given = {"peak": None if peak is None else jnp.float32(peak)}
    at = None if position is None else jnp.asarray(position, jnp.float32)
    return np.asarray(jax.jit(make_schedule(config))(jnp.arange(steps.start, steps.stop), at, **given)).tolist()


# Fraction of the peak where a fraction `done` of the eight steps after two of warm-up is done, at `step`.
SHAPES: list[tuple[dict[str, Any], Callable[[float, int], float]]] = [
    ({"name": "constant"}, lambda done, step: 1.0),
    ({"name": "linear"}, lambda done, step: 1 - done),
    ({"name": "linear", "end_ratio": 0.25}, lambda done, step: 0.25 + 0.75 * (1 - done)),
    ({"name": "cosine", "end_ratio": 0.25}, lambda done, step: 0.25 + 0.75 * (1 + math.cos(math.pi * done)) / 2),
    ({"name": "polynomial", "end_ratio": 0.25, "power": 3.0}, lambda done, step: 0.25 + 0.75 * (1 - done) ** 3),
    ({"name": "polynomial"}, lambda done, step: (1 - done) ** 2),
    ({"name": "inverse_sqrt"}, lambda done, step: math.sqrt(2 / (step + 1))),
    # The last three steps of ten: 7, 8 and 9 are 0, 1 and 2 thirds of the way.
    ({"name": "wsd", "end_ratio": 0.25, "decay_ratio": 0.3}, lambda done, step: 0.25 + 0.75 * (1 - min(1, max(0, step - 7) / 3))),
    ({"name": "wsd", "decay_ratio": 0.0}, lambda done, step: float(step < 10)),  # at least one step
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "share"), SHAPES)
def test_shapes(schedule: dict[str, Any], share: Callable[[float, int], float]) -> None:
    """Step 1 is the first at the peak; after the last step a rate stays constant, except for inverse_sqrt."""
    expected = [4.0, 8.0, *(8 * share(min(1, (step - 2) / 8), step) for step in range(2, 13))]
    assert rates(range(13), warmup_steps=2, **schedule) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    halved = [rate / 16 for rate in expected]
    assert rates(range(13), peak=0.5, warmup_steps=2, **schedule) == pytest.approx(halved, rel=1e-5, abs=1e-6)


def test_without_warm_up_and_with_nothing_else() -> None:
    assert rates(range(3), name="linear") == pytest.approx([8.0, 7.2, 6.4])
    assert rates(range(3), name="inverse_sqrt") == pytest.approx([8.0, 8 / math.sqrt(2), 8 / math.sqrt(3)])
    assert rates(range(8, 12), name="linear", warmup_steps=10) == pytest.approx([7.2, 8.0, 8.0, 0.0])
    assert rates(range(8, 12), name="linear", warmup_steps=9) == pytest.approx([8.0, 8.0, 0.0, 0.0])
    assert rates(range(2), name="linear", warmup_steps=1) == pytest.approx([8.0, 8.0])


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 3), (0.24, 2), (0.26, 3), (1.0, 10)])
def test_warm_up_as_a_fraction(ratio: float, steps: int) -> None:
    """Of ten steps, to the nearest; 0 leaves it to warmup_steps."""
    given = {"warmup_ratio": ratio} if ratio else {"warmup_steps": 3}
    assert warmup_steps(resolve({"train": {"num_steps": 10}, "schedule": given})) == steps


def test_a_place_on_a_schedule_of_another_length() -> None:
    """From step 4 at place 10 of 20 on, two places a step: step 6 is at place 14, where 4 of 18 are left after 10% of warm-up, 2."""
    assert rates(range(4, 9), [4, 10, 2, 20], name="linear", warmup_ratio=0.1) == pytest.approx(
        [8 * (1 - (place - 2) / 18) for place in (10, 12, 14, 16, 18)]
    )
    assert rates(range(2), [0, 0, 1, 20], name="linear", warmup_ratio=0.2) == pytest.approx([8 / 4, 8 * 2 / 4])
    # 13% of 20 steps are 2.6, to the nearest 3.
    assert rates(range(2), [0, 0, 1, 20], name="linear", warmup_ratio=0.13) == pytest.approx([8 / 3, 8 * 2 / 3])
    assert rates(range(2), [0, 0, 1, 20], name="linear", warmup_steps=2) == pytest.approx([8 / 2, 8.0])
    assert rates(range(1), [0, 1.5, 1, 20], name="linear", warmup_steps=2) == [
        8.0
    ]  # between the last step of warm-up and its end

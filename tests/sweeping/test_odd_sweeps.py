"""Impossible sweeps are refused by arithmetic, before any trial is listed. Sizes and places are worked out next to the cases."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import pytest

from lm_research.errors import ConfigError
from lm_research.sweeping import Choice, Sweep, Uniform
from lm_research.sweeping.sweep import load

RATE, SEED = "optimizer.learning_rate", "seed"
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        # 300 x 300 x 100 = 9,000,000
        (
            {"space": {RATE: Choice(*range(300)), SEED: Choice(*range(300)), "train.batch_size": Choice(*range(100))}},
            "9,000,000 trials",
        ),
        ({"space": {RATE: Uniform(0.1, 0.2)}, "method": "random", "num_trials": 10**9}, "1,000,000,000 trials"),
        ({"space": {RATE: Uniform(0.1, 0.2)}, "method": "random", "num_trials": 1.5}, "num_trials"),
        ({"space": {RATE: Uniform(0.1, 0.2)}, "method": "random", "num_trials": -1}, "num_trials"),
        ({"space": {RATE: Uniform(NAN, 1.0)}, "method": "random", "num_trials": 1}, "finite"),
        ({"space": {RATE: Uniform(0.1, INF)}, "method": "random", "num_trials": 1}, "finite"),
        ({"space": {RATE: Uniform("a", 1)}, "method": "random", "num_trials": 1}, "finite"),
        ({"space": {RATE: Uniform(-1.0, -0.5)}, "method": "random", "num_trials": 1}, "an end is not valid"),
        (
            {"space": {"train.batch_size": Uniform(1, 10**12, integer=True)}, "method": "random", "num_trials": 1},
            "an end is not valid",
        ),
        ({"space": {RATE: Choice(0.1, NAN)}}, "finite"),
        ({"space": {RATE: Choice(10**400)}}, "finite"),
        ({"space": {RATE: Choice([0.1])}}, "finite"),
        ({"space": {"data.source": Choice("a\0b")}}, "strings"),
        ({"space": {"data.source": Choice("x" * 10**6)}}, "strings"),
        ({"space": {RATE: Choice(0.1)}, "fixed": {SEED: None}}, "config.seed"),
        ({"space": {RATE: Choice(0.1)}, "rungs": (0, 5)}, "rungs"),
        ({"space": {RATE: Choice(0.1)}, "rungs": ("a",)}, "rungs"),
        ({"space": {RATE: Choice(0.1)}, "eta": "two"}, "eta"),
        ({"space": {RATE: Choice(0.1)}, "seed": -1}, "seed"),
        ({"space": {RATE: Choice(0.1)}, "config": 3}, "config"),
        ({"space": {RATE: Choice(0.1)}, "module": "a b;c"}, "module"),
        ({"space": [RATE]}, "space"),
        ({"space": {3: Choice(1)}}, "config.3"),
        ({"method": "list", "points": (1, 2)}, "points"),
    ],
)
def test_what_cannot_be_swept(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sweep(**{"config": "configs/quickstart.py", **values})
    assert said in str(caught.value) and len(str(caught.value)) < 1000


def test_a_grid_is_the_product_of_its_choices() -> None:
    """itertools.product's order: the last key fastest."""
    space = {RATE: Choice(0.1, 0.2, 0.3), SEED: Choice(1, 2), "train.batch_size": Choice(8, 16)}
    sweep = Sweep("x.py", space)
    expected = [dict(zip(space, point, strict=True)) for point in itertools.product((0.1, 0.2, 0.3), (1, 2), (8, 16))]
    assert [sweep.planned(number) for number in range(12)] == expected
    assert [list(point) for point in map(sweep.planned, range(2))] == [list(space)] * 2


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(0)",
        "def get_sweep():\n    raise SystemExit",
        "(" * 5000,
        "def get_sweep():\n    return get_sweep()",
    ],
)
def test_a_file_that_is_not_a_sweep(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sweep.py").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.py"):
        load(str(tmp_path / "sweep.py"))
    with pytest.raises(ConfigError, match="a device"):
        load("/dev/null")

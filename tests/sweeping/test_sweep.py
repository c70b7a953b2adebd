"""The trials of a sweep, and which sweeps are refused."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest

from lm_research.errors import ConfigError
from lm_research.sweeping import Choice, Sweep, Uniform
from lm_research.sweeping import sweep as sweep_module
from lm_research.sweeping.sweep import config_digest, load

RATE, LAYERS = "optimizer.learning_rate", "model.num_layers"


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    sweep = Sweep("configs/quickstart.py", {RATE: Choice(1e-3, 1e-2), "model.num_layers": Choice(1, 2, 3)})
    assert sweep.num_trials == 6
    assert [tuple(sweep.planned(number).values()) for number in range(6)] == [
        (1e-3, 1),
        (1e-3, 2),
        (1e-3, 3),
        (1e-2, 1),
        (1e-2, 2),
        (1e-2, 3),
    ]


def test_random_values_follow_from_seed_and_number_and_cover_their_range() -> None:
    space = {RATE: Uniform(1e-5, 1e-1, log=True), "model.num_layers": Uniform(1, 4, integer=True)}
    sweep = Sweep("configs/quickstart.py", space, method="random", num_trials=400)
    drawn = [sweep.planned(number) for number in range(400)]
    assert drawn == [sweep.planned(number) for number in range(400)]
    assert drawn != [Sweep("x", space, method="random", num_trials=400, seed=1).planned(n) for n in range(400)]
    decades = [math.floor(math.log10(values[RATE])) for values in drawn]
    for decade in (-5, -4, -3, -2):  # 100 expected in each; at most four deviations of a binomial (8.7) away
        assert 65 <= decades.count(decade) <= 135
    assert {values["model.num_layers"] for values in drawn} == {1, 2, 3, 4}


def test_random_values_are_those_of_earlier_versions() -> None:
    """A resumed study draws the same: from the generator of (seed, number), key by key; four digits, or whole numbers."""
    space = {RATE: Uniform(1e-5, 1e-1, log=True), "optimizer.weight_decay": Uniform(0.2, 0.6)}
    space |= {LAYERS: Uniform(2, 9, integer=True), "model.family": Choice("bert", "gpt2", "t5")}
    sweep = Sweep("configs/quickstart.py", space, method="random", num_trials=40, seed=7)
    for number in range(40):
        draw = np.random.default_rng([7, number])
        rate = float(f"{1e-5 * 1e4 ** draw.uniform():.4g}")
        decay = float(f"{0.2 + 0.4 * draw.uniform():.4g}")
        layers = round(2 + 7 * draw.uniform())
        family = ("bert", "gpt2", "t5")[draw.integers(3)]
        assert list(sweep.planned(number).values()) == [pytest.approx(rate), pytest.approx(decay), layers, family]


def test_sizes_up_to_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    points = tuple({RATE: rate} for rate in (0.1, 0.2, 0.3))
    monkeypatch.setattr(sweep_module, "MOST", 2)
    for given in ({"method": "list", "points": points}, {"space": {RATE: Choice(1, 2, 3)}}):
        with pytest.raises(ConfigError, match="3 (points|trials); the limit is 2"):
            Sweep("x", **given)
    assert Sweep("x", method="list", points=points[:2]).num_trials == 2
    assert Sweep("x", {RATE: Choice(1, 2)}).num_trials == 2
    Sweep("x", {"data.source": Choice("x" * 4096)})
    with pytest.raises(ConfigError, match="at most 4096 characters"):
        Sweep("x", {"data.source": Choice("x" * 4097)})
    Sweep("x", {LAYERS: Uniform(1, 4, log=True, integer=True)}, method="random", num_trials=1)


def test_a_text_and_a_value_of_its_look_are_two_values() -> None:
    points = tuple({"model.scan_layers": value} for value in (True, "True", True))
    assert Sweep("x", method="list", points=points).space == {"model.scan_layers": Choice(True, "True")}


@pytest.mark.parametrize("lengths", ["config.train.budget = '9s'", "config.train.num_epochs = 2.0"])
def test_rungs_require_a_config_of_steps(lengths: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.py").write_text(
        f"from lm_research.config import default_config\ndef get_config():\n    config = default_config()\n    {lengths}\n    return config\n"
    )
    sweep = f"Sweep({str(tmp_path / 'config.py')!r}, {{'seed': Choice(1, 2)}}"
    for rungs, refused in ((", rungs=(1, 2))", True), (")", False)):
        text = f"from lm_research.sweeping import Choice, Sweep\ndef get_sweep():\n    return {sweep}{rungs}\n"
        (tmp_path / "sweep.py").write_text(text)
        if refused:
            with pytest.raises(ConfigError, match="has rungs, which are steps"):
                load(str(tmp_path / "sweep.py"))
        else:
            assert load(str(tmp_path / "sweep.py")).num_trials == 2


def test_a_list_has_its_points_and_its_space_their_values() -> None:
    points = [{"model.hidden_size": 32, RATE: 0.1}, {"model.hidden_size": 64, RATE: 0.1}]
    sweep = Sweep("configs/quickstart.py", method="list", points=points)
    assert sweep.num_trials == 2 and [sweep.planned(number) for number in range(2)] == points
    assert sweep.space == {"model.hidden_size": Choice(32, 64), RATE: Choice(0.1)}
    assert sweep.digest() != Sweep("configs/quickstart.py", method="list", points=points[:1]).digest()


def test_a_sweep_without_points_has_the_digest_it_had_before_there_were_any() -> None:
    sweep = Sweep("x", {RATE: Choice(0.1)})
    assert sweep.digest() == "441e02106f7dfff9"


def test_flags_are_those_of_the_command() -> None:
    sweep = Sweep("configs/quickstart.py:gpt", {RATE: Choice(0.5)}, fixed={"model.scan_layers": True}, rungs=(5, 20))
    assert sweep.flags({RATE: 0.5}) == [
        "--config=configs/quickstart.py:gpt",
        "--config.model.scan_layers=true",
        "--config.optimizer.learning_rate=0.5",
        "--config.train.num_steps=20",
    ]


def test_equal_configs_have_equal_digests() -> None:
    config = str(pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py")
    sweep = Sweep(config, {"train.num_steps": Choice(5, 6), RATE: Choice(0.001)})
    digests = [
        config_digest(sweep, {"train.num_steps": steps, RATE: rate}) for steps, rate in ((5, 1), (5, 1.0), (6, 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ConfigError, match="train.num_steps"):
        config_digest(sweep, {"train.num_steps": -1})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "greed"}, "The sweep's method is 'greed'"),
        ({"space": {}}, "space is empty"),
        ({"space": {"optimizer.learning_rat": Choice(1)}}, "learning_rate"),
        ({"space": {RATE: Uniform(1, 2)}}, "A grid requires choices"),
        ({"space": {RATE: Uniform(0, 2, log=True)}, "method": "random", "num_trials": 3}, "above 0 with log=True"),
        ({"space": {RATE: Choice(1, 1)}}, "each once"),
        ({"space": {RATE: 1}}, r"Write Choice\(...\)"),
        ({"method": "random"}, "num_trials is 0"),
        ({"rungs": (5, 5)}, "must be increasing steps"),
        ({"rungs": (5, 6), "eta": 1}, "eta 2 or more"),
        ({"space": {RATE: Uniform(1.0, 1.0)}, "method": "random", "num_trials": 3}, "low must be below high"),
        ({"rungs": (5, 6), "prune": True}, "Keep one of them"),
        ({"rungs": (5, 6), "method": "tpe", "num_trials": 3}, "learns from finished trials"),
        ({"rungs": (5, 6), "fixed": {"train.num_steps": 6}}, "also sets train.num_steps"),
        ({"rungs": (5, 6), "space": {"train.budget": Choice("9s", "8s")}}, "also sets train.budget"),
        ({"space": {LAYERS: Uniform(1, 4)}, "method": "random", "num_trials": 3}, "integers: add integer=True"),
        ({"space": {RATE: Uniform(1, 4, integer=True)}, "method": "random", "num_trials": 3}, "remove integer=True"),
        ({"space": {"model.family": Uniform(1, 4)}, "method": "random", "num_trials": 3}, r"takes Choice\(...\)"),
        ({"space": {LAYERS: Uniform(0.5, 4, log=True, integer=True)}, "method": "tpe", "num_trials": 3}, "1 or more"),
        ({"points": ({RATE: 1},)}, "no points"),
        ({"method": "list"}, "requires points"),
        ({"method": "list", "space": {}, "points": ({RATE: 1}, {"seed": 1})}, "point 1 has the keys seed"),
        ({"fixed": {RATE: 1}}, "both varies and fixes optimizer.learning_rate"),
    ],
)
def test_impossible_values_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sweep(**{"config": "configs/quickstart.py", "space": {RATE: Choice(1.0)}, **given})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", r"has no get_sweep\(\)"),
        ("1 / 0", "line 1: `1 / 0` raised ZeroDivisionError"),
        ("def get_sweep(): return 3", "returned a int"),
    ],
)
def test_a_file_without_a_sweep_is_refused(text: str, words: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sweep.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        load(str(path))
    assert str(path) in str(refused.value)
    with pytest.raises(ConfigError, match="no such file"):
        load(str(tmp_path / "other.py"))


def test_an_error_in_a_config_of_the_sweep_has_its_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("sweep.py").write_text("def get_sweep():\n    return nothing\n")
    with pytest.raises(ConfigError, match=r"^sweep.py, line 2: `return nothing` raised NameError"):
        load("sweep.py")


def test_keys_fixed_for_one_variant_are_left_out_of_the_trials_of_others() -> None:
    fixed = {
        "optimizer.momentum": 0.5,
        "optimizer.weight_decay": 0.0,
        "data.mixture": {"a": {"source": "x"}},
        "train.budget": None,
    }
    sweep = Sweep("configs/quickstart.py", {"optimizer.name": Choice("muon", "lion")}, fixed=fixed)
    assert sweep.values({"optimizer.name": "muon"}) == fixed | {"optimizer.name": "muon"}
    assert sweep.flags({"optimizer.name": "lion"}) == [
        "--config=configs/quickstart.py",
        "--config.optimizer.weight_decay=0.0",
        '--config.data.mixture={"a": {"source": "x"}}',
        "--config.train.budget=",
        "--config.optimizer.name=lion",
    ]

"""What a sweep is: a config, the keys that vary, and how their values are chosen.

A file `experiments/NAME/sweep.py` has a `get_sweep()` that returns one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import runpy
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from lm_research import config as config_lib
from lm_research.common.documents import Count, check_fields, is_finite, short
from lm_research.common.paths import FILE, path_of
from lm_research.common.paths import kind as kind_of
from lm_research.common.texts import is_text
from lm_research.config import loading
from lm_research.config.draft import set_values
from lm_research.config.keys import plain
from lm_research.config.registries import VARIANTS
from lm_research.errors import ConfigError, suggest

METHODS = ("grid", "random", "tpe", "list")
MOST = 100_000  # trials of a study
_LONGEST = 4096  # characters of a value that is a text
_LENGTHS = {"train.num_steps", "train.stop_after", "train.num_epochs", "train.budget"}  # what rungs are instead of


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values: numbers, texts, true or false."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A number between two others, both included; `log` draws its logarithm evenly, `integer` gives whole numbers."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study to be.

    Attributes:
      config: FILE or FILE:ARG, as after --config.
      space: key of the config -> the values it may take; of a list what its points have.
      fixed: key of the config -> the value it has in every trial.
      method: "grid" (all combinations, in the order of the space, the last key fastest), "random", or "tpe" (model-based: the
        tree-structured Parzen estimator, Bergstra et al. 2011), or "list" (those of `points`).
      num_trials: how many; of a grid, all of them at 0; of a list, its length.
      metric: of summary.json, what a trial is judged by; `direction`: "minimize" or "maximize".
      seed: of what is drawn.
      rungs: steps at which trials are compared (successive halving, Jamieson and Talwalkar 2016): at each but the last the
        better 1/`eta` go on from their checkpoints. The last one is train.num_steps. () trains all to the end.
      prune: stop a trial whose last evaluation is worse than the median of the others' at that step.
      module: what a trial runs, with --config, --config.KEY=VALUE and --workdir.
      points: of a list, the trials one by one: key -> value, the same keys in each. For keys that change together, such as width and
        heads, or an optimizer and its rates.
    """

    config: str
    space: Mapping[str, Choice | Uniform] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "grid"
    num_trials: int = 0
    metric: str = "eval_loss_nats"
    direction: Literal["minimize", "maximize"] = "minimize"
    seed: int = 0
    rungs: tuple[int, ...] = ()
    eta: int = 2
    prune: bool = False
    module: str = "lm_research.train"
    points: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(
            {name: getattr(self, name) for name in _TYPES}, _TYPES, "The sweep", error=ConfigError, fix="Fix it."
        )
        for name, valid in (("method", METHODS), ("direction", ("minimize", "maximize"))):
            if getattr(self, name) not in valid:
                raise ConfigError(
                    f"The sweep's {name} is {getattr(self, name)!r}. {suggest(str(getattr(self, name)), valid)}"
                )
        if self.points or self.method == "list":
            self._read_points()
        if not self.space:
            raise ConfigError("The sweep's space is empty: name the keys that vary, with their values.")
        for key in (*self.space, *self.fixed):
            config_lib.check_key(str(key))
        for key, value in self.fixed.items():
            if isinstance(value, Mapping | list | tuple | None):  # told in JSON, or as an empty text
                config_lib.find(key).check(value)
            else:
                _check_value(key, value)
        if twice := self.space.keys() & self.fixed.keys():
            raise ConfigError(f"The sweep both varies and fixes {', '.join(sorted(twice))}. Keep one of the two.")
        for key, values in self.space.items():
            self._check(key, values)
        if self.method == "grid" and not self.num_trials:
            object.__setattr__(self, "num_trials", math.prod(len(choice.values) for choice in self._choices().values()))
        if self.num_trials > MOST:
            raise ConfigError(
                f"The sweep has {self.num_trials:,} trials, and a study {MOST:,} at most. Give its keys fewer values, or draw some of them with "
                "method='random' and num_trials."
            )
        if self.num_trials < 1:
            raise ConfigError(f"The sweep's num_trials is {self.num_trials}: say how many trials {self.method} makes.")
        if self.rungs and (sorted(set(self.rungs)) != list(self.rungs) or self.rungs[0] < 1 or self.eta < 2):
            raise ConfigError(
                f"The sweep's rungs are {self.rungs} and eta {self.eta}: rungs are growing step numbers, and eta is 2 or more."
            )
        if self.rungs and self.prune:
            raise ConfigError("The sweep asks for rungs and for prune: both stop weak trials. Keep one of them.")
        if self.rungs and self.method == "tpe":
            raise ConfigError(
                "The sweep asks for rungs and for method='tpe', which learns from trials that have ended: with rungs all begin before any "
                "ends. Write method='random', or prune=True in place of the rungs."
            )
        if self.rungs and (lengths := _LENGTHS & {*self.space, *self.fixed}):
            raise ConfigError(
                f"The sweep's rungs are the steps that its trials run to, and it sets {', '.join(sorted(lengths))} too. Leave one out."
            )

    def _read_points(self) -> None:
        """Makes the space of the points, in which each key has the values that occur."""
        if len(self.points) > MOST:
            raise ConfigError(f"The sweep has {len(self.points):,} points, and a study {MOST:,} trials at most.")
        object.__setattr__(self, "points", tuple(dict(point) for point in self.points))
        if self.method != "list" or self.space or not self.points or not self.points[0]:
            raise ConfigError(
                "method='list' needs points with values, and no space; other methods need a space, and no points."
            )
        keys = list(self.points[0])
        for number, point in enumerate(self.points):
            if set(point) != set(keys):
                raise ConfigError(
                    f"The sweep's point {number} has the keys {', '.join(point)}, and the first one {', '.join(keys)}. Give all points "
                    "the same."
                )
        values = {key: {repr(point[key]): point[key] for point in self.points} for key in keys}
        object.__setattr__(self, "space", {key: Choice(*distinct.values()) for key, distinct in values.items()})
        object.__setattr__(self, "num_trials", len(self.points))

    def _check(self, key: str, values: Choice | Uniform) -> None:
        if isinstance(values, Choice):
            for value in values.values:
                _check_value(key, value)
            if not values.values or len(set(map(repr, values.values))) < len(values.values):
                raise ConfigError(f"The sweep's choices for {key} are {values.values}: give one or more, each once.")
        elif not isinstance(values, Uniform):
            raise ConfigError(f"The sweep's values for {key} are {values!r}. Write Choice(...) or Uniform(low, high).")
        elif self.method == "grid":
            raise ConfigError(f"A grid needs choices, and {key} has {values}. Write Choice(...), or method='random'.")
        elif (kind := _number(key)) not in (int, float) or (kind is int) != values.integer:
            wanted = {int: "whole numbers: add integer=True", float: "no whole numbers: leave integer out"}
            raise ConfigError(f"The sweep's {key} has {values}, and the key takes {wanted.get(kind, 'Choice(...)')}.")
        elif not all(is_finite(end) and abs(end) <= 1e30 for end in (values.low, values.high)):
            raise ConfigError(f"The sweep's {key} has {values}: low and high are finite numbers.")
        elif values.log and values.integer and values.low < 1:
            raise ConfigError(f"The sweep's {key} has {values}: of whole numbers with log=True low is 1 or more.")
        elif not values.low < values.high or (values.log and values.low <= 0):
            raise ConfigError(f"The sweep's {key} has {values}: low must be below high, and above 0 with log=True.")
        else:
            for end in (values.low, values.high):
                _check_end(key, end, values)

    def _choices(self) -> dict[str, Choice]:
        """The space of a grid or a list, in which nothing is a range."""
        return {key: values for key, values in self.space.items() if isinstance(values, Choice)}

    def planned(self, number: int) -> dict[str, Any]:
        """The values of a trial of a grid, a list or a random sweep: a pure function of its number and the seed."""
        if self.method == "list":
            return dict(self.points[number % len(self.points)])
        if self.method == "grid":
            found: dict[str, Any] = {}
            for key, choice in reversed(self._choices().items()):  # the last key fastest
                number, place = divmod(number, len(choice.values))
                found[key] = choice.values[place]
            return {key: found[key] for key in self.space}
        draw, values = np.random.default_rng([self.seed, number]), {}
        for key, kind in self.space.items():
            if isinstance(kind, Choice):
                values[key] = kind.values[int(draw.integers(len(kind.values)))]
            elif kind.integer:
                values[key] = int(min(kind.high, max(kind.low, round(_between(kind, draw.uniform())))))
            else:  # four digits, so that what is read in a table is what was run
                values[key] = min(kind.high, max(kind.low, float(f"{_between(kind, draw.uniform()):.4g}")))
        return values

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Every key that a trial gives a value. What is fixed for one optimizer, say, is left out of the trials of others."""
        fixed = {key: value for key, value in self.fixed.items() if not _of_another(key, params)}
        return {**fixed, **params, **({"train.num_steps": self.rungs[-1]} if self.rungs else {})}

    def flags(self, params: Mapping[str, Any]) -> list[str]:
        """Of a trial's command, without --workdir."""
        values = self.values(params)
        return [f"--config={self.config}", *(f"--config.{key}={_text(value)}" for key, value in values.items())]

    def digest(self) -> str:
        """Of everything that decides what the trials are."""
        content = dataclasses.asdict(self)
        if not self.points:
            del content["points"]  # studies from before there were any keep their digest
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


_TYPES = {
    "config": str,
    "space": dict,
    "fixed": dict,
    "method": str,
    "num_trials": Count,
    "metric": str,
    "direction": str,
    "seed": Count,
    "rungs": tuple[Count, ...],
    "eta": Count,
    "prune": bool,
    "module": Annotated[str, Meta(pattern=r"^[\w.]{1,200}$")],
    "points": tuple[dict[str, Any], ...],
}


def _check_value(key: str, value: Any) -> None:
    """Raises a ConfigError for what no flag can say; whether the key can have it, its trial tells."""
    text = value if isinstance(value, str) else ""
    known = isinstance(value, bool | str) or is_finite(value)
    if not known or "\0" in text or not is_text(text) or len(text) > _LONGEST:
        raise ConfigError(
            f"The sweep gives {key} the value {short(value)}: values are finite numbers, true or false, and texts of {_LONGEST} characters."
        )


def _check_end(key: str, end: float, values: Uniform) -> None:
    """Raises a ConfigError if a key cannot have an end of its range."""
    try:
        config_lib.find(key).check(_number(key)(end))
    except (ConfigError, ValueError, OverflowError) as error:
        raise ConfigError(f"The sweep's {key} has {values}, whose end cannot be: {error}") from error


def _number(key: str) -> type:
    """The type int or float, of which the values of a key are; str of other keys."""
    return next((kind for kind in config_lib.find(key).kinds if kind in (int, float)), str)


def _of_another(key: str, params: Mapping[str, Any]) -> bool:
    """Whether a key is of another variant of its section than the one that a trial chooses."""
    section, _, leaf = key.partition(".")
    registry = VARIANTS.get(section)
    name = params.get(f"{section}.{registry.chooser}") if registry else None
    return registry is not None and name is not None and leaf not in registry.keys(name)


def _between(kind: Uniform, share: float) -> float:
    if kind.log:
        return kind.low * (kind.high / kind.low) ** share
    return kind.low + (kind.high - kind.low) * share


def _text(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain(value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def config_digest(sweep: Sweep, params: Mapping[str, Any]) -> str:
    """Of a trial's resolved config: two trials with the same one are the same run.

    Raises:
      ConfigError: the values cannot be used.
    """
    values = config_lib.overlay(set_values(loading.load(sweep.config)), sweep.values(params))
    return hashlib.sha256(config_lib.dumps(config_lib.resolve(values)).encode()).hexdigest()[:16]


def load(path: str) -> Sweep:
    """The sweep of a file; raises a ConfigError that names the file if it has none."""
    file = path_of(path, "--sweep")
    if (found := kind_of(file)) != FILE:
        raise ConfigError(
            f"--sweep={path}: {f'it is {found}' if found else 'there is no such file'}. Give one with a get_sweep(), for example experiments/lr/sweep.py."
        )
    with loading.locate_errors(file):
        made = runpy.run_path(str(file.resolve()))
        if "get_sweep" not in made:
            raise ConfigError("it has no get_sweep().")
        sweep = made["get_sweep"]()
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"--sweep={path}: get_sweep() returned a {type(sweep).__name__}, not a Sweep.")
    train = loading.load(sweep.config).train
    if sweep.rungs and (train.budget or train.num_epochs):
        raise ConfigError(
            f"--sweep={path} has rungs, which are steps, and {sweep.config} sets train.budget={train.budget!r} and train.num_epochs="
            f"{train.num_epochs}. Name a config that sets train.num_steps."
        )
    return sweep

"""Definition of sweeps: a config, the keys that vary, and how their values are sampled.

A file `experiments/NAME/sweep.py` defines a `get_sweep()` that returns one.
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
_LONGEST = 4096  # characters of a value that is a string
_LENGTHS = {"train.num_steps", "train.stop_after", "train.num_epochs", "train.budget"}  # keys that rungs replace


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values: numbers, strings or booleans."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Number in an inclusive range; `log` samples its logarithm uniformly, `integer` samples integers."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Specification of a study.

    Attributes:
      config: FILE or FILE:ARG, as for --config.
      space: key of the config -> the values that it may take; method "list" sets it from `points`.
      fixed: key of the config -> its value in every trial.
      method: "grid" (all combinations, in the order of the space, with the last key varying fastest), "random", "tpe" (the tree-structured
        Parzen estimator, Bergstra et al. 2011) or "list" (the trials of `points`).
      num_trials: number of trials; 0 is the size of the grid. A list sets it to its length.
      metric: metric of summary.json by which trials are ranked.
      direction: "minimize" or "maximize".
      seed: random seed of the sampled values.
      rungs: steps at which trials are compared (successive halving, Jamieson and Talwalkar 2016): at each but the last, the best
        1/`eta` continue from their checkpoints. The last rung is train.num_steps. () trains all trials to the end.
      eta: reduction factor of successive halving.
      prune: whether to stop a trial whose last evaluation is worse than the median of the others at that step.
      module: module that a trial runs, with --config, --config.KEY=VALUE and --workdir.
      points: trials of method "list": key -> value, with the same keys in each. For keys that vary together, such as width and heads, or
        an optimizer and its learning rates.
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
            if isinstance(value, Mapping | list | tuple | None):  # passed as JSON, or as an empty string
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
                f"The sweep has {self.num_trials:,} trials; the limit is {MOST:,}. Give its keys fewer values, or sample them with "
                "method='random' and num_trials."
            )
        if self.num_trials < 1:
            raise ConfigError(
                f"The sweep's num_trials is {self.num_trials}. Set the number of trials that {self.method} samples."
            )
        if self.rungs and (sorted(set(self.rungs)) != list(self.rungs) or self.rungs[0] < 1 or self.eta < 2):
            raise ConfigError(
                f"The sweep's rungs are {self.rungs} and eta is {self.eta}: rungs must be increasing steps, and eta 2 or more."
            )
        if self.rungs and self.prune:
            raise ConfigError("The sweep has both rungs and prune, which both stop weak trials. Keep one of them.")
        if self.rungs and self.method == "tpe":
            raise ConfigError(
                "The sweep has rungs and method='tpe', which learns from finished trials, but with rungs all trials start before any "
                "finishes. Use method='random', or prune=True instead of the rungs."
            )
        if self.rungs and (lengths := _LENGTHS & {*self.space, *self.fixed}):
            raise ConfigError(
                f"The sweep's rungs set the number of steps of its trials, but it also sets {', '.join(sorted(lengths))}. Remove one of them."
            )

    def _read_points(self) -> None:
        """Set the space from the points: each key has the values that occur."""
        if len(self.points) > MOST:
            raise ConfigError(
                f"The sweep has {len(self.points):,} points; the limit is {MOST:,} trials. Use fewer points."
            )
        object.__setattr__(self, "points", tuple(dict(point) for point in self.points))
        if self.method != "list" or self.space or not self.points or not self.points[0]:
            raise ConfigError(
                "method='list' requires points with values and no space; other methods require a space and no points."
            )
        keys = list(self.points[0])
        for number, point in enumerate(self.points):
            if set(point) != set(keys):
                raise ConfigError(
                    f"The sweep's point {number} has the keys {', '.join(point)}, but the first one has {', '.join(keys)}. Give all points "
                    "the same keys."
                )
        values = {key: {repr(point[key]): point[key] for point in self.points} for key in keys}
        object.__setattr__(self, "space", {key: Choice(*distinct.values()) for key, distinct in values.items()})
        object.__setattr__(self, "num_trials", len(self.points))

    def _check(self, key: str, values: Choice | Uniform) -> None:
        if isinstance(values, Choice):
            for value in values.values:
                _check_value(key, value)
            if not values.values or len(set(map(repr, values.values))) < len(values.values):
                raise ConfigError(
                    f"The sweep's choices for {key} are {values.values}. Give at least one, and each once."
                )
        elif not isinstance(values, Uniform):
            raise ConfigError(f"The sweep's values for {key} are {values!r}. Write Choice(...) or Uniform(low, high).")
        elif self.method == "grid":
            raise ConfigError(f"A grid requires choices, but {key} has {values}. Use Choice(...), or method='random'.")
        elif (kind := _number(key)) not in (int, float) or (kind is int) != values.integer:
            expected = {int: "integers: add integer=True", float: "real numbers: remove integer=True"}
            raise ConfigError(f"The sweep's {key} has {values}, but the key takes {expected.get(kind, 'Choice(...)')}.")
        elif not all(is_finite(end) for end in (values.low, values.high)):
            raise ConfigError(f"The sweep's {key} has {values}: low and high must be finite numbers.")
        elif values.log and values.integer and values.low < 1:
            raise ConfigError(f"The sweep's {key} has {values}: with integer=True and log=True, low must be 1 or more.")
        elif not values.low < values.high or (values.log and values.low <= 0):
            raise ConfigError(f"The sweep's {key} has {values}: low must be below high, and above 0 with log=True.")
        else:
            for end in (values.low, values.high):
                _check_end(key, end, values)

    def _choices(self) -> dict[str, Choice]:
        """The space of a grid or a list, which has no ranges."""
        return {key: values for key, values in self.space.items() if isinstance(values, Choice)}

    def planned(self, number: int) -> dict[str, Any]:
        """Return the values of a trial of a grid, a list or a random sweep, which depend only on its number and the seed."""
        if self.method == "list":
            return dict(self.points[number])
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
            else:  # four digits, so that tables show the exact values
                values[key] = min(kind.high, max(kind.low, float(f"{_between(kind, draw.uniform()):.4g}")))
        return values

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all keys that a trial sets, without fixed keys of another variant, such as another optimizer."""
        fixed = {key: value for key, value in self.fixed.items() if not _of_another(key, params)}
        return {**fixed, **params, **({"train.num_steps": self.rungs[-1]} if self.rungs else {})}

    def flags(self, params: Mapping[str, Any]) -> list[str]:
        """Return the flags of a trial's command, without --workdir."""
        values = self.values(params)
        return [f"--config={self.config}", *(f"--config.{key}={_text(value)}" for key, value in values.items())]

    def digest(self) -> str:
        """Return the digest of everything that determines the trials."""
        content = dataclasses.asdict(self)
        if not self.points:
            del content["points"]  # keeps the digest of studies that predate points
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
    """Raise a ConfigError for a value that no flag can express; whether it is valid for the key, its trial checks."""
    text = value if isinstance(value, str) else ""
    is_simple = isinstance(value, bool | str) or is_finite(value)
    if not is_simple or "\0" in text or not is_text(text) or len(text) > _LONGEST:
        raise ConfigError(
            f"The sweep gives {key} the value {short(value)}: values must be finite numbers, booleans, or strings of at most {_LONGEST} "
            "characters."
        )


def _check_end(key: str, end: float, values: Uniform) -> None:
    """Raise a ConfigError if an end of a range is not valid for its key."""
    try:
        config_lib.find(key).check(_number(key)(end))
    except (ConfigError, ValueError, OverflowError) as error:
        raise ConfigError(f"The sweep's {key} has {values}, but an end is not valid: {error}") from error


def _number(key: str) -> type:
    """Return the numeric type of a key, int or float; str for other keys."""
    return next((kind for kind in config_lib.find(key).kinds if kind in (int, float)), str)


def _of_another(key: str, params: Mapping[str, Any]) -> bool:
    """Return whether a key belongs to another variant of its section than the one that a trial chooses."""
    section, _, leaf = key.partition(".")
    registry = VARIANTS.get(section)
    name = params.get(f"{section}.{registry.chooser}") if registry else None
    return registry is not None and name is not None and leaf not in registry.keys(name)


def _between(kind: Uniform, fraction: float) -> float:
    if kind.log:
        return kind.low * (kind.high / kind.low) ** fraction
    return kind.low + (kind.high - kind.low) * fraction


def _text(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain(value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def config_digest(sweep: Sweep, params: Mapping[str, Any]) -> str:
    """Return the digest of a trial's resolved config: trials with the same digest are the same run.

    Raises:
      ConfigError: the values are not valid.
    """
    values = config_lib.overlay(set_values(loading.load(sweep.config)), sweep.values(params))
    return hashlib.sha256(config_lib.dumps(config_lib.resolve(values)).encode()).hexdigest()[:16]


def load(path: str) -> Sweep:
    """Load the sweep of a file; raise a ConfigError that names the file if it has none."""
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
            f"--sweep={path} has rungs, which are steps, but {sweep.config} sets train.budget={train.budget!r} and train.num_epochs="
            f"{train.num_epochs}. Use a config that sets train.num_steps."
        )
    return sweep

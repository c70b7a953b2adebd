"""Settings shared by the studies in this folder: how to keep small runs small, and how to run a large version.

These environment variables change every study:

    STUDY_CONFIG=configs/bert_base.py   another config (and its own model, steps, rate and checkpoints) instead of the small runs
    STUDY_STEPS=100000                  steps of each trial
    STUDY_SEEDS=5                       seeds of each point
    STUDY_TRIALS=2                      only the first two trials, to check that everything works
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lm_research.config import loading
from lm_research.errors import ConfigError
from lm_research.sweeping import Sweep

# A trial of a few seconds needs neither samples nor checkpoints nor curves in TensorBoard.
SMALL = {
    "eval.every_steps": 0,
    "eval.num_samples": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.keep_best": 0,
    "logging.trackers": "none",
    "logging.every_steps": 100,
}
Points = list[dict[str, Any]]


def is_large() -> bool:
    """Return whether STUDY_CONFIG names a config."""
    return bool(os.environ.get("STUDY_CONFIG"))


def base(config: str) -> ConfigDict:
    """Load the config that the trials change: STUDY_CONFIG, or else the study's own."""
    return loading.load(os.environ.get("STUDY_CONFIG") or config)


def whole(name: str, default: int) -> int:
    """Return an environment variable, or `default` if it is unset; raise a ConfigError unless it is a whole number above 0."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={text!r} is not a whole number above 0. Set one, or unset the variable.")
    return int(text)


def seeds(count: int) -> range:
    """Return the seeds of each point: STUDY_SEEDS of them, or `count`."""
    return range(whole("STUDY_SEEDS", count))


def grid(**values: Iterable[Any]) -> Points:
    """Return every combination; the last key varies fastest. `section__key=values` sets section.key."""
    keys = [name.replace("__", ".") for name in values]
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def study(
    config: str,
    points: Sequence[Mapping[str, Any]],
    small: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    metric: str = "eval_loss_nats",
) -> Sweep:
    """Make the sweep of a study.

    Args:
      config: config of the small runs.
      points: the trials. Those of one seed run before those of the next, so that a study that is stopped has complete tables.
      small: values for the small runs only: their model, learning rate and number of steps.
      fixed: values that the question requires in runs of any size.
      metric: name of the metric by which trials are compared.
    """
    values = {**({} if is_large() else SMALL | dict(small)), **(fixed or {})}
    if "STUDY_STEPS" in os.environ:
        values |= {"train.num_steps": whole("STUDY_STEPS", 1), "train.num_epochs": 0.0, "train.budget": ""}
    varied = points[0].keys()
    values = {key: value for key, value in values.items() if key not in varied}
    points = sorted(points, key=lambda point: point.get("seed", 0))
    kept = points[: whole("STUDY_TRIALS", len(points))]
    return Sweep(
        os.environ.get("STUDY_CONFIG") or config, method="list", points=tuple(kept), fixed=values, metric=metric
    )

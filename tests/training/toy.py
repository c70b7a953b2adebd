"""A problem small enough to solve by hand in NumPy: linear regression, through the real training step.

The model is y = x kernel + bias; the loss of a batch is the mean of w (y - t)^2 over its weights w.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helpers import tiny
from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.objectives.base import Objective
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state
from lm_research.training.step import make_train_step

WIDTH = 3


class Regression(Objective):
    normalizer_names = ("tokens", "real")
    metrics = {"square": "tokens", "error": "tokens"}
    loss_terms = ("square",)
    token_loss_name = "square"

    def normalizers(self, batch: dict) -> dict:
        return {"tokens": batch["weights"].sum(), "real": jnp.float32(batch["weights"].size)}

    def metric_sums(self, model: dict, batch: dict, key: jax.Array | None) -> dict:
        x = batch["tokens_BL"] @ model["layer"]["kernel"] + model["layer"]["bias"]
        errors = x - batch["targets"]
        weights = batch["weights"]
        return {"square": (weights * errors**2).sum(), "error": (weights * jnp.abs(errors)).sum()}


def first_params() -> dict:
    return {"layer": {"kernel": np.array([0.5, -1.0, 2.0], np.float32), "bias": np.float32(0.3)}}


DEFINITION = types.SimpleNamespace(
    arch=types.SimpleNamespace(compute_dtype=jnp.float32),
    init=lambda seed: jax.tree.map(jnp.asarray, first_params()),
    bind=lambda params: params,
    layers_of=lambda path: None,
    shapes=jax.eval_shape(lambda: jax.tree.map(jnp.asarray, first_params())),
)


def config(**sections: Any) -> Config:
    base = {"optimizer": {"learning_rate": 0.1}, "train": {"num_steps": 10, "batch_size": 8}}
    sections = {name: {**base.get(name, {}), **changes} for name, changes in sections.items()}
    return config_lib.resolve(base | sections)


def batch(number: int, rows: int = 8, accumulation: int = 1) -> dict[str, np.ndarray]:
    """Arrays [A, B, ...] of a batch with weights of 0, 1 and 2, never all 0."""
    rng = np.random.default_rng(number)
    x, noise = rng.normal(size=(rows, WIDTH)), rng.normal(size=rows)
    weights = rng.integers(0, 3, rows).astype(float)
    weights[0] = 1.0
    arrays = {"tokens_BL": x, "targets": x @ [1.0, 2.0, 3.0] - 1.0 + noise, "weights": weights}
    return {
        name: value.reshape(accumulation, -1, *value.shape[1:]).astype(np.float32) for name, value in arrays.items()
    }


@functools.cache
def compiled_step(config: Config) -> Any:
    """The real step of a config, jitted once for all tests."""
    optimizer, schedule = make_optimizer(config.optimizer), make_schedule(config)
    return tiny.jit(make_train_step(Regression(), DEFINITION, optimizer, schedule, config))


class Trainer:
    """The real step and the state it carries."""

    def __init__(self, config: Config) -> None:
        self.objective, self.state = Regression(), first_state(config)
        self._step = compiled_step(config)

    def step(self, batch: dict[str, np.ndarray]) -> dict:
        self.state = self._step(self.state, batch)
        return self.state


def first_state(config: Config) -> dict:
    """The state that `init_state` makes, from NumPy zeros: `init_state` would compile many small programs."""
    shapes = jax.eval_shape(lambda: init_state(DEFINITION, make_optimizer(config.optimizer), config, Regression()))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = {name: first_params() for name in ("params", "ema") if name in state}
    return state | params | {"halted": np.int32(-1), "seed": np.uint32(config.seed)}

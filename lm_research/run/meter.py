"""Training metrics, one line of metrics.jsonl per window: means, rates, and the use of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm_research.config import Config
from lm_research.data.mixture import Mixture
from lm_research.data.sampler import Examples
from lm_research.models.definition import ModelDefinition
from lm_research.models.flops import train_flops_per_token
from lm_research.objectives.base import Objective
from lm_research.parallel.hardware import peak_flops
from lm_research.run.goodput import TimeAccount
from lm_research.run.logger import RunLogger
from lm_research.training.state import State, window_means


class Meter:
    """Computes lines of training metrics: means over the window, and rates over the seconds spent in steps."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        definition: ModelDefinition,
        examples: Examples,
        start: int,
        log: RunLogger,
        clock: TimeAccount,
        lines: Sequence[dict[str, float]] | None = (),
    ) -> None:
        """Set up rates; the token count continues from `lines`, those of metrics.jsonl up to step `start` (None if the last are lost)."""
        self.config, self.objective, self.examples, self.last_step = config, objective, examples, start
        lengths = row_lengths(config, definition, examples)
        self.flops = train_flops_per_token(definition, lengths[1], objective.target_fraction, lengths[0])
        self.peak, source = peak_flops()
        self.measured = jax.devices()[0].platform == "cpu"
        if self.peak:
            log(
                f"mfu: (6 N + 12 layers D L) x real tokens/s / {self.peak:.3g} FLOP/s ({source}); N counts matrix products, "
                f"the vocabulary's for predicted positions only: {self.flops:.3g} FLOP a token"
                + (f" of rows of {lengths[0]} + {lengths[1]}" if lengths[0] else "")
            )
        counts = [0, *(line.get("tokens") for line in lines or () if "tokens_per_second" in line)]
        self.tokens = None if lines is None else counts[-1]  # also None if an older version wrote lines without a count
        self.log = log
        self.clock, self.waited = clock, clock.lost["data"]
        clock.lap()

    def line(self, step: int, state: State, schedule: Any) -> dict[str, float]:
        """Make the line of metrics.jsonl for the window that ends with `step`; wait for the device."""
        window = jax.device_get(state["window"])
        steps, self.last_step = step - self.last_step, step
        seconds = self.clock.lap() / steps
        waited, self.waited = (self.clock.lost["data"] - self.waited) / steps, self.clock.lost["data"]
        tokens_per_second = float(window["total_real"]) / float(window["steps"]) / seconds
        flops_per_second = self.flops * tokens_per_second  # of all devices
        values = window_means(self.objective, window) | {
            "learning_rate": float(schedule(step - 1)),
            "epoch": step * self.config.train.batch_size / self.examples.num_examples,
            "tokens_per_second": round(tokens_per_second, 1),
            "flops_per_second": float(f"{flops_per_second:.6g}"),
            "step_seconds": float(f"{seconds:.6g}"),
            "goodput": round(self.clock.goodput, 4),
            **process_spread(seconds, waited),
        }
        if isinstance(self.examples, Mixture):
            values |= {f"epoch_{name}": epoch for name, epoch in self.examples.epochs(step).items()}
        if self.tokens is not None:  # exact: float32 sums of integers, below 2**24 per window
            self.tokens += int(window["total_real"])
            values["tokens"] = self.tokens
        if self.peak:
            values |= self._mfu(flops_per_second, self.peak)
        return values

    def _mfu(self, flops_per_second: float, peak: float) -> dict[str, float]:
        """Compute the fraction of the peak; stop reporting it once a run exceeds the peak that was measured of its CPU."""
        if flops_per_second > peak and self.measured:
            self.log(
                f"mfu: left out from here on, because steps exceed the measured {peak:.3g} FLOP/s: the CPU was busy during that measurement"
            )
            self.peak = None
            return {}
        return {"mfu": round(flops_per_second / peak, 5)}


def process_spread(step_seconds: float, data_seconds: float) -> dict[str, float]:
    """Compare the times of all processes. All of them must call this, because it is a small collective.

    `step_seconds_min` and `_max` are over processes, for the same steps; `data_seconds_max` is the longest wait for a batch per step with
    an idle device, and `data_process` the process that waited. A single process only reports its own `data_seconds`.
    """
    if jax.process_count() == 1:
        return {"data_seconds": round(data_seconds, 5)}
    steps_P, data_P = multihost_utils.process_allgather(np.array([step_seconds, data_seconds])).T
    return {
        "step_seconds_min": round(float(steps_P.min()), 5),
        "step_seconds_max": round(float(steps_P.max()), 5),
        "data_seconds_max": round(float(data_P.max()), 5),
        "data_process": int(data_P.argmax()),
    }


def step_size(
    config: Config, objective: Objective, definition: ModelDefinition, examples: Examples
) -> tuple[int, float]:
    """Compute tokens (positions of the rows, padding included) and FLOPs of a step."""
    source, length = row_lengths(config, definition, examples)
    tokens = config.train.batch_size * (source + length)
    return tokens, tokens * train_flops_per_token(definition, length, objective.target_fraction, source)


def row_lengths(config: Config, definition: ModelDefinition, examples: Examples) -> tuple[int, int]:
    """Return S and L of the rows; S is 0 unless the model is an encoder-decoder."""
    if not definition.arch.encoder:
        return 0, config.data.max_length
    row = examples.batch(np.zeros(1, np.int64), np.zeros(1, np.int64))
    return row["source_tokens_BS"].shape[1], row["tokens_BL"].shape[1]

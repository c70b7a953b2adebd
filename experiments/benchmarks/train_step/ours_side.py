"""The training step of lm_research, built as in lm_research/train.py."""

from __future__ import annotations

from typing import Any

import jax
import jaxlib

from experiments.benchmarks.train_step import workload
from experiments.benchmarks.train_step.worker import Side, serve
from experiments.benchmarks.train_step.workload import Row
from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.models.families import define_model
from lm_research.models.flops import train_flops_per_token
from lm_research.objectives import build_objective
from lm_research.parallel.batches import to_global
from lm_research.parallel.hardware import peak_flops
from lm_research.parallel.mesh import make_mesh
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, state_shardings, window_means, window_zeros
from lm_research.training.step import jit_train_step, make_train_step


def make_config(row: Row, options: dict[str, Any]) -> Config:
    """Return the run's config; `options` override its model section."""
    model = dict(
        family=row.family,
        num_layers=row.layers,
        hidden_size=row.width,
        num_heads=row.width // 64,
        intermediate_size=4 * row.width,
        vocab_size=workload.VOCAB_SIZE[row.family],
        max_length=workload.MAX_LENGTH[row.family],
        dropout_rate=row.dropout,
        attention_dropout_rate=row.dropout,
        dtype=row.dtype,
    )
    optimizer = dict(
        learning_rate=workload.LEARNING_RATE,
        weight_decay=workload.WEIGHT_DECAY,
        clip_norm=workload.CLIP_NORM,
        beta1=workload.BETA1,
        beta2=workload.BETA2,
        epsilon=workload.EPSILON,
    )
    sections = {
        "model": model | options,
        "objective": {
            "bert": {"name": "masked_lm", "mask_rate": workload.MASK_RATE},
            "gpt2": {"name": "causal_lm"},
        }[row.family],
        "data": {"max_length": row.length},
        "optimizer": optimizer,
        "schedule": {"name": "constant"},
        "train": {"batch_size": row.batch},
    }
    return config_lib.resolve(sections)


class OurSide(Side):
    def __init__(self, row: Row, options: dict[str, Any]) -> None:
        config = make_config(row, options)
        self.device = jax.devices()[0]
        self.wait_each = self.device.platform == "cpu"
        self.mesh = make_mesh(config.mesh, [self.device])
        jax.set_mesh(self.mesh)
        definition = define_model(config.model, config.model.vocab_size)
        # Batches are synthetic, and the step itself never uses the tokenizer.
        self.objective = build_objective(config, None, definition.arch)
        optimizer, schedule = make_optimizer(config.optimizer), make_schedule(config)

        def new_state():
            return init_state(definition, optimizer, config, self.objective)

        self.shardings = state_shardings(self.mesh, definition, jax.eval_shape(new_state))
        self.state = jax.jit(new_state, out_shardings=self.shardings)()
        train_step = make_train_step(self.objective, definition, optimizer, schedule, config)
        batch = to_global(self.mesh, self.prepare(next(workload.batches(row))), leading=1)
        self.compiled = jit_train_step(train_step, self.shardings).lower(self.state, batch).compile()
        self.about = {
            "parameters": definition.num_params,
            "device": self.device.device_kind,
            "platform": self.device.platform,
            "flops_per_token": train_flops_per_token(definition, row.length, self.objective.target_fraction),
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }
        if self.device.platform != "cpu":
            peak, source = peak_flops()
            self.about |= {"peak_flops": peak and peak / jax.device_count(), "peak_source": source}

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: values[None] for name, values in batch.items()}  # one micro-batch

    def step(self, prepared: dict[str, Any]) -> None:
        self.state = self.compiled(self.state, to_global(self.mesh, prepared, leading=1))

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def loss(self) -> float:
        """Return the mean over the steps since the last call."""
        means = window_means(self.objective, jax.device_get(self.state["window"]))
        empty = jax.jit(lambda: window_zeros(self.objective), out_shardings=self.shardings["window"])
        self.state["window"] = empty()
        return means["loss_nats"]

    def device_peak_bytes(self) -> int | None:
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use") if self.device.platform != "cpu" else None


if __name__ == "__main__":
    serve(OurSide)

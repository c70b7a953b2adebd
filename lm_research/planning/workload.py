"""What one example costs: its arrays, its floating-point operations, and what the backward pass keeps of it.

Legend: B rows, L target (or only) length, S source length, M predicted positions, D width, H heads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from lm_research.config import Config, replace
from lm_research.data.store import write_store
from lm_research.errors import ConfigError
from lm_research.models.adapters import adapt
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import table_rows
from lm_research.models.flops import Flops, train_flops
from lm_research.objectives import define, make_objective
from lm_research.objectives.base import Objective
from lm_research.parallel.mesh import AXES
from lm_research.training.groups import Groups, make_groups


class Vocabulary:
    """A tokenizer's roles and size without its words, enough to know the shapes of batches."""

    pad_id, unk_id, cls_id, sep_id, mask_id, bos_id, eos_id = range(7)
    special_ids = np.arange(7)

    def __init__(self, size: int) -> None:
        self.size = size
        self.starts_word = np.ones(size, bool)

    def token_id(self, token: str) -> int:
        """Any token, a sentinel say, is taken to exist."""
        return self.unk_id


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run's model and objective, and the arrays of one example (name -> shape without B, and dtype)."""

    config: Config
    definition: ModelDefinition
    objective: Objective
    row: dict[str, jax.ShapeDtypeStruct]

    @property
    def groups(self) -> Groups:
        """What learns."""
        return make_groups(self.config, self.definition.shapes)

    @property
    def length(self) -> int:
        """L."""
        return self.row["tokens_BL"].shape[0]

    @property
    def source_length(self) -> int:
        """S; 0 without a source."""
        return self.row["source_tokens_BS"].shape[0] if "source_tokens_BS" in self.row else 0

    @property
    def tokens_per_row(self) -> int:
        """Positions of an example, padding included: S + L."""
        return self.source_length + self.length

    @property
    def predicted_per_row(self) -> int:
        """M: positions the vocabulary projection is made for."""
        targets = next(leaf for name, leaf in self.row.items() if name.startswith("targets_"))
        return targets.shape[0]

    def batch(self, rows: int, micro_batches: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch [B, ...], or [A, B, ...] with micro-batches."""
        leading = (micro_batches, rows) if micro_batches else (rows,)
        return {name: jax.ShapeDtypeStruct(leading + x.shape, x.dtype) for name, x in self.row.items()}


def vocab_size(config: Config) -> int:
    """Rows of the token table, as training will choose them (a trained tokenizer gets the size it is asked for).

    Raises:
      ConfigError: only the tokenizer's file would tell.
    """
    if not config.model.vocab_size and config.tokenizer.path:
        raise ConfigError(
            f"plan does not open tokenizer.path={config.tokenizer.path}, so it does not know how many rows the token table "
            "has. Give them: --config.model.vocab_size=N."
        )
    return table_rows(config.model, config.tokenizer.vocab_size)


def make_workload(config: Config) -> Workload:
    """Describes a run without allocating it. The shapes come from the objective itself, on a few made-up tokens.

    Raises:
      ConfigError: what training would refuse too, or a run that starts from a model directory.
    """
    if config.train.init_from:
        raise ConfigError(
            f"plan does not open train.init_from={config.train.init_from}. Give the model's shape in the model section, and "
            "--config.train.init_from= (empty)."
        )
    size = vocab_size(config)
    definition = adapt(define(config, size), config.lora)
    objective = make_objective(config, Vocabulary(size), definition.arch)
    documents = [[[7] * config.data.max_length] * 2] * 4  # two sentences each: seq2seq takes them for pairs
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(pathlib.Path(folder) / "store", iter(documents), "plan", size)
        batch = objective.examples(store, "train").batch(np.zeros(1, np.int64), np.zeros(1, np.int64))
    row = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch.items()}
    return Workload(config, definition, objective, row)


def flops_per_row(work: Workload) -> Flops:
    """Of forward and backward pass over one example; training's MFU counts by the same function."""
    return train_flops(work.definition, work.length, work.predicted_per_row, work.source_length)


def local_config(config: Config, tensor: int) -> Config:
    """The model that one chip computes under tensor parallelism: 1/tensor of heads, feed-forward and vocabulary."""
    model = config.model
    head_size = model.head_size or model.hidden_size // model.num_heads
    size = -(-vocab_size(config) // tensor)
    changes = dict(
        num_heads=model.num_heads // tensor, intermediate_size=model.intermediate_size // tensor, head_size=head_size,
        num_kv_heads=model.num_kv_heads // tensor, vocab_size=size,
    )  # fmt: skip
    return replace(config, model=changes, tokenizer={"path": "whole"})  # which has more tokens than a part's rows


@functools.lru_cache(maxsize=64)
def activation_bytes(config: Config, tensor: int = 1, context: int = 1) -> float:
    """Bytes that the backward pass needs of one example's forward pass, on one chip of a tensor and a context axis.

    Not a formula per family but the arrays themselves: jax.vjp of the loss is traced on shapes for one row and for
    two, and the difference of what the two keep is what a row adds, under the model's remat policy. For GPT-like blocks in
    16 bits it comes near the S B D (34 + 5 H S / D) bytes a layer of Korthikanti et al. 2022 (equation 1), plus what
    softmax in float32 adds. With a context axis the rings are traced (they keep no scores), and its chips share what is kept.
    """
    work = make_workload(local_config(config, tensor) if tensor > 1 else config)
    groups = work.groups

    def kept(rows: int) -> int:
        def pull_back(params: Any, batch: Any) -> Any:
            def loss(learning: Any) -> jax.Array:
                model = work.definition.bind(groups.used(params, learning, None))
                sums = work.objective.sums(model, batch, jax.random.key(0))
                return sum(sums[term] for term in work.objective.loss_terms)

            return jax.vjp(loss, groups.learning(params))[1]

        nothing = AbstractMesh((), ())  # a mesh of another size, set around us, could not be replaced directly
        with jax.sharding.use_abstract_mesh(nothing), jax.sharding.use_abstract_mesh(mesh):
            leaves = jax.tree.leaves(jax.eval_shape(pull_back, work.definition.shapes, work.batch(rows)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    mesh = AbstractMesh((1, 1, context, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return float(kept(2) - kept(1)) / context

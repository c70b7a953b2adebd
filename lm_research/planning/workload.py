"""Cost of one example: its arrays, its floating-point operations, and the memory of its activations.

Legend: B batch, L target (or only) length, S source length, M predicted positions, D width, H heads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from typing_extensions import override

from lm_research import tasks
from lm_research.common.rounding import ceil_div
from lm_research.config import Config, MeshConfig, ModelConfig, TrainConfig, replace
from lm_research.data.store import write_store
from lm_research.errors import ConfigError
from lm_research.models.adapters import adapt
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import VOCAB_MULTIPLE, define_model, table_rows
from lm_research.models.flops import Flops, train_flops
from lm_research.models.transformer import quantize_products
from lm_research.objectives import build_objective, define
from lm_research.objectives.base import Objective
from lm_research.parallel.mesh import AXES
from lm_research.planning.fusion import kernels
from lm_research.planning.kernels import Kernel, extrapolate
from lm_research.tasks.base import TASKS
from lm_research.tasks.dataset import LabeledCorpus
from lm_research.tasks.rows import SharedRows
from lm_research.tokenizers.base import Tokenizer
from lm_research.training.optimizer import make_optimizer
from lm_research.training.param_groups import ParamGroups, make_groups
from lm_research.training.state import init_state
from lm_research.training.table_copies import TABLE_AXES

# Numbers of sequences for which kernels are traced; their sizes for other numbers follow.
TRACED_ROWS = (2, 4)  # few enough for one slice of logits, as several devices have


class Vocabulary(Tokenizer):
    """Tokenizer with special tokens and a size but no words, which is enough to determine the shapes of batches."""

    roles = {role: number for number, role in enumerate(("pad", "unk", "cls", "sep", "mask", "bos", "eos"))}

    def __init__(self, size: int) -> None:
        self.size = size
        self.starts_word = np.ones(size, bool)

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.unk_id] for _ in texts]

    @override
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return ""

    def token_id(self, token: str) -> int:
        """Return an id for any token, such as a sentinel: all are assumed to exist."""
        return self.unk_id


@dataclasses.dataclass(frozen=True)
class Workload:
    """Model and objective of a run, and the arrays of one example (name -> shape without B, and dtype)."""

    config: Config
    definition: ModelDefinition
    objective: Objective
    row: dict[str, jax.ShapeDtypeStruct]

    @property
    def groups(self) -> ParamGroups:
        """The trainable parameters."""
        return make_groups(self.config, self.definition.shapes, self.definition.layers_of)

    @functools.cached_property
    def state_shapes(self) -> Any:
        """Shapes of the training state; cached, because a search needs them many times."""
        make = functools.partial(
            init_state, self.definition, make_optimizer(self.config.optimizer), self.config, self.objective
        )
        return jax.eval_shape(make)

    @property
    def length(self) -> int:
        """L."""
        return self.row["tokens_BL"].shape[-1]

    @property
    def texts_per_row(self) -> int:
        """C, the number of texts of an example that are encoded separately, such as the choices of a question."""
        return math.prod(self.row["tokens_BL"].shape[:-1])

    @property
    def source_length(self) -> int:
        """S; 0 without a source."""
        return self.row["source_tokens_BS"].shape[0] if "source_tokens_BS" in self.row else 0

    @property
    def tokens_per_row(self) -> int:
        """Positions of an example, padding included: S + L of each text."""
        return (self.source_length + self.length) * self.texts_per_row

    @property
    def predicted_per_row(self) -> int:
        """M: positions for which logits over the vocabulary are computed; 0 if labels are predicted."""
        return next((leaf.shape[0] for name, leaf in self.row.items() if name.startswith("targets_")), 0)

    def batch(self, rows: int, micro_batches: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch [B, ...], or [A, B, ...] with micro-batches."""
        leading = (micro_batches, rows) if micro_batches else (rows,)
        return {name: jax.ShapeDtypeStruct(leading + x.shape, x.dtype) for name, x in self.row.items()}


def vocab_size(config: Config) -> int:
    """Return the rows of the token table as in training (a trained tokenizer has tokenizer.vocab_size tokens).

    Raises:
      ConfigError: the number depends on the tokenizer's file.
    """
    if not config.model.vocab_size and config.tokenizer.path:
        raise ConfigError(
            f"plan does not read tokenizer.path={config.tokenizer.path}, so the number of rows of the token table is unknown. "
            "Set --config.model.vocab_size=N."
        )
    return table_rows(config.model, config.tokenizer.vocab_size)


def make_workload(config: Config, whole: Config | None = None) -> Workload:
    """Describe a run without allocating it.

    The shapes of an example come from the objective, applied to a few made-up tokens, or from the task, applied to the data of the
    config, which determine the number of labels and the maximum length.

    Args:
      config: config of the run; its model section has the architecture of train.init_from (init_checkpoint.apply_init_checkpoint).
      whole: config of the whole run, if `config` describes a part of its model.

    Raises:
      ConfigError: training would refuse the config too.
    """
    if config.task:
        return _of_task(config, whole or config)
    size = vocab_size(config)
    definition = adapt(define(config, size), config.lora)
    objective = build_objective(config, Vocabulary(size), definition.arch)
    documents = [[[7] * config.data.max_length] * 2] * 4  # two sentences each, which seq2seq reads as pairs
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(pathlib.Path(folder) / "store", iter(documents), "plan", size)
        batch = objective.examples(store, "train").batch(np.zeros(1, np.int64), np.zeros(1, np.int64))
    return Workload(config, definition, objective, _row(batch))


def _of_task(config: Config, whole: Config) -> Workload:
    tasks.validate(config, define_model(config.model, VOCAB_MULTIPLE).arch)
    start = TrainConfig(init_from=whole.train.init_from)  # reading examples does not depend on the rest
    corpus = _read_records(dataclasses.replace(whole, model=ModelConfig(), mesh=MeshConfig(), train=start))
    definition = adapt(tasks.define(config, table_rows(config.model, corpus.tokenizer.size), corpus), config.lora)
    task = tasks.build(config, corpus, definition.arch)
    examples = task.examples(corpus.train, "train")
    if isinstance(examples, SharedRows):  # planned with one example per row, the maximum number of rows
        row_1K = np.full((1, max(1, examples.slots)), -1)
        row_1K[0, 0] = 0
        batch = examples.shared(row_1K)
    else:
        batch = examples.batch(np.zeros(1, np.int64), np.zeros(1, np.int64))
    return Workload(config, definition, task.objective, _row(batch))


@functools.lru_cache(maxsize=4)
def _read_records(config: Config) -> LabeledCorpus:
    """Read a task's data set; its files remain in memory or open after their directory is deleted."""
    assert config.task is not None and config.task.name is not None
    with tempfile.TemporaryDirectory() as folder:
        return TASKS[config.task.name].open_corpus(config, pathlib.Path(folder), lambda _: None)


def _row(batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch.items()}


def flops_per_row(work: Workload) -> Flops:
    """Count the operations of the forward and backward pass of one example; the MFU of training uses the same function."""
    one = train_flops(work.definition, work.length, work.predicted_per_row, work.source_length)
    texts = work.texts_per_row
    return Flops(one.layers * texts, one.attention * texts, one.head)


def local_config(config: Config, tensor: int) -> Config:
    """Return the config of one chip's part of the model under tensor parallelism: 1/tensor of heads, feed-forward and vocabulary."""
    model = config.model
    head_size = model.head_size or model.hidden_size // model.num_heads
    rows = make_workload(config).definition.arch.vocab_size if config.task else vocab_size(config)
    size = ceil_div(rows, tensor)
    changes = dict(
        num_heads=model.num_heads // tensor,
        intermediate_size=model.intermediate_size // tensor,
        head_size=head_size,
        num_kv_heads=(model.num_kv_heads or 0) // tensor or None,
        vocab_size=size,
    )
    return replace(
        config, model=changes, tokenizer={"path": "whole"}
    )  # a path, because the tokenizer exceeds the part's rows


@functools.lru_cache(maxsize=64)
def activation_bytes(config: Config, tensor: int = 1, context: int = 1, platform: str = "cpu") -> float:
    """Return the bytes that one example's forward pass stores for the backward pass, per chip of a tensor and a context axis.

    They are measured instead of computed by a formula for each family: jax.vjp of the loss is traced on shapes for one example and for
    two, and the difference of the stored bytes is what an example adds, under the model's remat policy. For GPT-like blocks in 16 bits
    the result is close to the S B D (34 + 5 H S / D) bytes per layer of Korthikanti et al. 2022 (equation 1), plus those of the float32
    softmax. With a context axis the rings are traced (they store no scores), and its chips divide the stored arrays. Attention is that
    of the platform.
    """
    work = make_workload(local_config(config, tensor) if tensor > 1 else config, config)
    groups, quantization = work.groups, config.train.quantization

    def kept(rows: int) -> int:
        def pull_back(params: Any, batch: Any) -> Any:
            def loss(learning: Any) -> jax.Array:
                model = quantize_products(work.definition.bind(groups.combine(params, learning, None)), quantization)
                sums = work.objective.metric_sums(model, batch, jax.random.key(0))
                return jnp.asarray(sum(sums[term] for term in work.objective.loss_terms))

            return jax.vjp(loss, groups.trainable(params))[1]

        nothing = AbstractMesh((), ())  # resets an enclosing mesh, which cannot be replaced by one of another size
        with jax.sharding.use_abstract_mesh(nothing), jax.sharding.use_abstract_mesh(mesh):
            leaves = jax.tree.leaves(jax.eval_shape(pull_back, work.definition.shapes, work.batch(rows)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    sizes = tuple(context if axis == "context" else 1 for axis in AXES)
    device = AbstractDevice("", None, platform)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)
    return float(kept(2) - kept(1)) / context


def gradient_kernels(config: Config, rows: int, platform: str, tensor: int = 1, context: int = 1) -> Sequence[Kernel]:
    """List the kernels of one micro-batch's loss and gradient on a device of a tensor and a context axis (see fusion.py).

    The gradient is traced on shapes, like `activation_bytes`, for two numbers of sequences. Parameters have the compute type, as after the cast (and the gathering) that
    `predict` counts separately, but token tables are in float32, see training/table_copies.py.

    Args:
      config: config of the run.
      rows: sequences of the micro-batch on a chip, b.
      platform: "tpu" or "gpu"; decides about kernels of attention.
      tensor: size of the axis tensor.
      context: size of the axis context.
    """
    few, many = (_gradient_kernels(config, count, platform, tensor, context) for count in TRACED_ROWS)
    return extrapolate(few, many, TRACED_ROWS, rows) or _gradient_kernels(config, rows, platform, tensor, context)


@functools.lru_cache(maxsize=128)
def _gradient_kernels(config: Config, rows: int, platform: str, tensor: int, context: int) -> tuple[Kernel, ...]:
    work = make_workload(local_config(config, tensor) if tensor > 1 else config, config)
    dtype, quantization = work.definition.arch.compute_dtype, config.train.quantization

    def cast(leaf: jax.ShapeDtypeStruct, axes: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype if len(leaf.shape) > 1 and axes != TABLE_AXES else leaf.dtype)

    def gradient(learning: Any, params: Any, batch: Any, key: Any) -> Any:
        def loss(learning: Any) -> jax.Array:
            model = work.definition.bind(work.groups.combine(params, learning, None))
            model = quantize_products(model, quantization)
            sums = work.objective.metric_sums(model, batch, key)
            return jnp.asarray(sum(sums[term] for term in work.objective.loss_terms))

        return jax.value_and_grad(loss)(learning)

    params = jax.tree.map(cast, work.definition.shapes, work.definition.axes)
    arguments = (work.groups.trainable(params), params, work.batch(rows), jax.eval_shape(lambda: jax.random.key(0)))
    sizes = tuple(context if axis == "context" else 1 for axis in AXES)
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    types = (AxisType.Auto,) * len(AXES)
    mesh = AbstractMesh(sizes, AXES, axis_types=types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())), jax.sharding.use_abstract_mesh(mesh):
        return tuple(kernels(jax.make_jaxpr(gradient)(*arguments), context))

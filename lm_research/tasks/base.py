"""The base of labeled tasks: the Task contract, the objective over labels, and records as padded or packed rows.

Legend: B batch, L length, N records.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.config import Config, TaskConfig, key, registries
from lm_research.config.keys import LONGEST_TEXT
from lm_research.config.variants import Variants
from lm_research.data.corpus import LOCAL_RUNNER, Bars, Log, no_bar
from lm_research.data.sampler import Examples
from lm_research.data.store import TokenStore
from lm_research.data.workers import Runner
from lm_research.errors import ConfigError, suggest
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import define_model
from lm_research.models.heads import HeadSpec
from lm_research.objectives.base import Batch, Objective, Outputs, Sums, Trainable
from lm_research.tasks.dataset import LabeledCorpus, Reader, open_labeled
from lm_research.tasks.rows import PackedExamples, PaddedExamples, WindowExamples


def _read_labels(text: str) -> tuple[str, ...]:
    """Parse comma-separated labels."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"it has {len(text):,} characters, more than the limit of {LONGEST_TEXT:,}.")
    return tuple(part.strip() for part in text.split(","))


@dataclasses.dataclass(frozen=True)
class PairConfig(TaskConfig):
    """Settings of tasks whose records may have a second text."""

    pair_key: str | None = key(
        None, "Field of a second text (question_answering: the question); None reads single texts."
    )


@dataclasses.dataclass(frozen=True)
class LabelsConfig(TaskConfig):
    """Settings of tasks that predict named labels."""

    labels: tuple[str, ...] | None = key(
        None,
        "All labels, in order; None uses those of the training examples.",
        read=_read_labels,
    )


@dataclasses.dataclass(frozen=True)
class WindowsConfig(TaskConfig):
    """Settings of tasks that read long inputs in overlapping windows."""

    doc_stride: int = key(
        128,
        "Tokens that neighboring windows of a long context or sentence share (tagging: at most half of a window).",
        low=0,
        high=2**24,
    )


def flatten_slots(batch: Batch) -> Batch:
    """Reshape the per-record arrays of a packed batch from [B, K, ...] to [B x K, ...]; return other batches unchanged."""
    if "row_weights_BK" not in batch:
        return batch
    each = {name: x for name, x in batch.items() if name.endswith("_BK")}
    rest = {name: x for name, x in batch.items() if name not in each}
    return rest | {name.removesuffix("K"): x.reshape(-1, *x.shape[2:]) for name, x in each.items()}


class LabelObjective(Objective):
    """A loss over the head's outputs for labeled records.

    Attributes:
      by_token: whether each token has a label, instead of each record.
    """

    normalizer_names: tuple[str, ...] = ("rows", "real")
    by_token: ClassVar[bool] = False

    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        """Count `rows`, the labeled records, and `real`, the input tokens without padding."""
        weights, segments = flatten_slots(batch)["row_weights_B"], batch["segments_BL"]
        return {"rows": weights.sum(), "real": (segments > 0).sum().astype(jnp.float32)}

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Compute the head's float32 outputs: per record, per slot [B, K, C] of a packed batch, or per token."""
        tokens_BL, segments_BL = batch["tokens_BL"], batch["segments_BL"]
        slots = batch["row_weights_BK"].shape[1] if "row_weights_BK" in batch else 0
        keys = (None, None) if key is None else jax.random.split(key)
        types_BL = batch["types_BL"] if model.arch.num_types > 1 else None
        stack = model.decoder if model.arch.causal else model.encoder
        x_BLD = stack(tokens_BL, segments_BL, batch.get("positions_BL"), types_BL, keys[0])
        return model.classify(x_BLD, tokens_BL, segments_BL, keys[1], slots)

    @abc.abstractmethod
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        """Sum each metric over a batch with one record a row."""

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        logits = self.logits(model, batch, key)
        if not self.by_token and "row_weights_BK" in batch:
            logits = logits.reshape(-1, *logits.shape[2:])
        return self.logit_sums(logits, flatten_slots(batch))


class Task(Trainable[LabeledCorpus]):
    """A labeled task of one run: it turns records into examples, and model outputs into predictions and metrics.

    Attributes:
      examples_class: how records become rows.
      supports_packing: whether several records can be packed into a row (data.packing).
      metric_kind: the type of its predictions, a key of metrics.KINDS.
      metric_names: metrics computed from predictions, in addition to the objective's; a user's own metric that task.metric names is included.
      labels: names in order; () where labels are values.
      metric: the metric that ranks models; names joined by + are averaged.
      lower_is_better: whether a smaller value of that metric is better.
      exact: whether predictions are written with all logits of a record.
      grouped: whether records form groups.
      has_predictions: whether the finished run has a prediction for each record.
    """

    examples_class: ClassVar[type[PaddedExamples]] = PaddedExamples
    supports_packing: ClassVar[bool] = False
    delivers_best: ClassVar[bool] = True
    metric_kind: str
    metric_names: tuple[str, ...]
    exact: bool = False
    grouped: bool = False
    has_predictions: bool = True

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.config, self.tokenizer, self.corpus, self.labels = config, corpus.tokenizer, corpus, corpus.labels
        self.objective = objective = self.make_objective()
        self.metric = TaskConfig.of(config.task).metric or self.default_metric()
        names, ranking = self.metric.split("+"), self.ranking_metrics()
        valid = (*ranking, *objective.loss_terms)
        for name in names:
            if name not in valid:
                raise ConfigError(f"config.task.metric is {self.metric!r}. {suggest(name, valid)}")
        self.metric_names = tuple(dict.fromkeys([*self.metric_names, *(name for name in names if name in ranking)]))
        lower = {name in objective.loss_terms or not metrics.higher_is_better(name) for name in names}
        if len(lower) > 1:
            raise ConfigError(
                f"config.task.metric={self.metric} averages a metric where higher is better with one where lower is better. Join "
                "metrics of one direction."
            )
        self.lower_is_better = lower.pop()

    @abc.abstractmethod
    def make_objective(self) -> Objective:
        """Make the training objective; config, corpus, tokenizer and labels are already set."""

    @classmethod
    @abc.abstractmethod
    def reader(cls, config: Config) -> Reader:
        """Make the reader of the task's records."""

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        task = TaskConfig.of(config.task)
        if not task.train:
            raise ConfigError(
                f"config.task.name={task.name} needs labeled records: name a .jsonl, .csv, .tsv or .parquet file or "
                "tfds:NAME in --config.task.train."
            )
        if config.data.packing and not cls.supports_packing:
            raise ConfigError(
                f"config.data.packing=True puts several records into a row, which task {task.name} cannot read. Leave it out, or "
                "set --config.data.group_by_length for less padding."
            )

    @classmethod
    @override
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = LOCAL_RUNNER, bars: Bars = no_bar
    ) -> LabeledCorpus:
        return open_labeled(config, workdir, cls.reader(config), log)

    @classmethod
    def num_labels(cls, config: Config, corpus: LabeledCorpus) -> int:
        """Count the outputs of the head: its classes, or 1 for a value."""
        return max(1, len(corpus.labels))

    @classmethod
    @override
    def define(cls, config: Config, vocab_size: int, corpus: LabeledCorpus) -> ModelDefinition:
        head = HeadSpec(cls.head(config), cls.num_labels(config, corpus))
        return define(define_model(config.model, vocab_size).arch, head)

    @override
    def examples(self, store: TokenStore, purpose: str) -> Examples:
        part = self.corpus.part_of(store)
        # Predictions are reported record by record, so held-out records are not packed.
        packed = self.config.data.packing and self.supports_packing and purpose == "train"
        examples_class = PackedExamples if packed else self.examples_class
        by_token = isinstance(self.objective, LabelObjective) and self.objective.by_token
        max_length, arrays = self.config.data.max_length, self.corpus.arrays[part]
        examples = examples_class(store, arrays, self.tokenizer.pad_id, max_length, by_token)
        if isinstance(examples, WindowExamples):
            examples.first = self.corpus.first_row_number(part)
        return examples

    @abc.abstractmethod
    def default_metric(self) -> str:
        """Name the metric that papers report."""

    def metric_inputs(self) -> tuple[str, ...]:
        """List the inputs that metrics can be computed from, by their names in metrics.KINDS."""
        return metrics.KINDS[self.metric_kind]

    def ranking_metrics(self) -> list[str]:
        """List the metrics that can rank models, those of `metric_names` first."""
        registered = metrics.metric_names(self.metric_kind, self.metric_inputs())
        return list(dict.fromkeys([*self.metric_names, *registered]))

    @abc.abstractmethod
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs | None:
        """Collect the predictions of a whole part in the form metrics take; None without predictions."""

    @override
    def scores(self, outputs: list[Outputs]) -> dict[str, float]:
        scored = self.scored(outputs)
        return scored.score(self.metric_names) if scored else {}

    @abc.abstractmethod
    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per record, for predictions.jsonl."""

    @override
    def rank(self, scores: Mapping[str, float]) -> float:
        value = self.value(scores)
        return value if self.lower_is_better else -value

    def value(self, scores: Mapping[str, float]) -> float:
        """Look up the value of `metric` in an evaluation's scores, or the mean of the metrics joined by `+`."""
        return float(np.mean([scores[f"eval_{name}"] for name in self.metric.split("+")]))

    def summarize(self, scores: Mapping[str, float]) -> str:
        """Describe the final result in one line."""
        return f"held-out {self.metric}: {self.value(scores):.4g} ({self.baseline()})"

    # ---------------------------------------------------------------- files of the finished model

    def write_files(self, directory: pathlib.Path, arch: Architecture) -> None:
        """Write into the finished model's directory what its users need in addition to model and tokenizer; by default nothing."""
        return

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Add the task's entries to the fine-tuned model's config.json."""
        return config

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Make the fine-tuned model's further files, which replace tokenizer files of the same name."""
        return {}

    @override
    def checkpoint_files(self, model: dict[str, Any], arch: Architecture) -> dict[str, bytes]:
        model["config"] = self.update_hf_config(dict(model["config"]))
        return self.files(arch)


TASKS: Variants[type[Task]] = registries.TASKS


class LabelTask(Task):
    """A task that is evaluated on the outputs of the model's head."""

    objective: LabelObjective

    @abc.abstractmethod
    @override
    def make_objective(self) -> LabelObjective: ...

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return logits, labels and row weights."""
        names = ("labels_B", "labels_BL", "groups_B", "credits_B", "window_B", "row_weights_B")
        kept = {name: batch[name] for name in names if name in batch}
        return kept | {"logits": self.objective.logits(model, batch, None)}

    def group_by_record(self, outputs: list[Outputs], *names: str) -> Iterator[tuple[str, int, list[tuple[Any, ...]]]]:
        """Group the windows of a part by record, in order: (part, record, [(row, its outputs of these names)]).

        If eval.num_batches ended the evaluation within a record, that record is left out, unless it is the only one.
        """
        numbers = np.concatenate([drop_padding(output, "window_B") for output in outputs])
        part, _ = self.corpus.locate(int(numbers[0]))
        first = self.corpus.first_row_number(part)
        record = self.corpus.records_of_rows(part)
        counts = np.bincount(record)
        read = ([x for output in outputs for x in drop_padding(output, name)] for name in names)
        rows = zip((numbers - first).tolist(), *read, strict=True)
        for number, own in itertools.groupby(rows, lambda row: int(record[row[0]])):
            windows = list(own)
            if len(windows) == counts[number] or number == record[numbers[0] - first]:
                yield part, number, windows

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Add the label names, if the head predicts labels."""
        if self.head(self.config) not in ("classification", "token_classification"):
            return config
        outputs = self.num_labels(self.config, self.corpus)
        labels = self.labels or [f"LABEL_{number}" for number in range(outputs)]
        return config | {
            "id2label": {str(number): name for number, name in enumerate(labels)},
            "label2id": {name: number for number, name in enumerate(labels)},
        }


def drop_padding(outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Drop the empty rows that fill up the last batch from an output."""
    return outputs[name][outputs["row_weights_B"] > 0]


def concat_outputs(outputs: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    """Concatenate an output of all batches, without empty rows."""
    return np.concatenate([drop_padding(output, name) for output in outputs])

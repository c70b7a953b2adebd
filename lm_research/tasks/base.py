"""What labeled tasks share: the contract, an objective of labels, and records as rows.

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

from lm_research import metrics
from lm_research.common.rounding import bucket_size, ceil_div
from lm_research.config import Config, TaskConfig, key, registries
from lm_research.config.keys import LONGEST_TEXT
from lm_research.config.variants import Variants
from lm_research.data.corpus import HERE, Bars, Log, no_bar
from lm_research.data.sampler import Examples, SharedRowExamples
from lm_research.data.store import TokenStore
from lm_research.data.workers import Runner
from lm_research.errors import ConfigError, suggest
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import define_model
from lm_research.models.heads import HeadSpec
from lm_research.objectives.base import Batch, Objective, Outputs, Sums, Trainable
from lm_research.objectives.packing import pack
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.tasks.dataset import IGNORED, LabeledCorpus, Reader, open_labeled
from lm_research.tasks.padding import rounded

_LEAST = 8  # tokens that a record counts at least where records share rows


def _read_labels(text: str) -> tuple[str, ...]:
    """Labels as one text, with commas between."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"it has {len(text):,} characters, and at most {LONGEST_TEXT:,} are read.")
    return tuple(part.strip() for part in text.split(","))


@dataclasses.dataclass(frozen=True)
class PairConfig(TaskConfig):
    pair_key: str | None = key(
        None, "Field of a second text (question_answering: the question); None reads single texts."
    )


@dataclasses.dataclass(frozen=True)
class LabelsConfig(TaskConfig):
    labels: tuple[str, ...] | None = key(
        None,
        "All labels, in order; None uses those of the training examples.",
        read=_read_labels,
    )


@dataclasses.dataclass(frozen=True)
class WindowsConfig(TaskConfig):
    doc_stride: int = key(
        128,
        "Tokens that neighboring windows of a long context or sentence share (tagging: at most half of a window).",
        low=0,
        high=2**24,
    )


class PaddedExamples(Examples):
    """Records of a data set as padded rows, by number."""

    def __init__(
        self, store: TokenStore, arrays: dict[str, np.ndarray], pad_id: int, max_length: int, by_token: bool
    ) -> None:
        starts = np.asarray(store.document_starts)
        self.starts = np.asarray(store.sentence_starts)[starts]
        self.lengths, self.store, self.pad, self.longest = np.diff(self.starts), store, pad_id, max_length
        self.labels, self.second, self.by_token = arrays["labels"], arrays["second"], by_token
        self.num_examples = store.num_documents
        self.groups: np.ndarray | None = None  # numbers that are equal where records belong together
        self.credits: np.ndarray | None = None  # what it is worth to choose a record of its group

    def example_lengths(self) -> np.ndarray | None:
        return self.lengths

    def width(self, index_B: np.ndarray) -> int:
        """Length of the rows of a global batch: that of the longest, rounded up."""
        return min(self.longest, rounded(int(self.lengths[np.maximum(index_B, 0)].max(initial=1))))

    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch(epoch_B, index_B, self.width(index_G))

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """tokens, types, segments [B, L] int32; labels [B] or [B, C], or [B, L] of tokens; row_weights [B] float32."""
        real_B, item_B = index_B >= 0, np.maximum(index_B, 0)
        lengths_B = np.where(real_B, self.lengths[item_B], 0)
        tokens_BL = np.full((len(index_B), width or self.longest), self.pad, np.int32)
        rows_B, first = np.arange(len(index_B)), np.zeros(len(index_B), np.int64)
        copy_pieces(tokens_BL, rows_B, first, self.store.tokens, self.starts[item_B], lengths_B)
        column_L = np.arange(tokens_BL.shape[1])
        segments_BL = (column_L < lengths_B[:, None]).astype(np.int32)
        second_B = self.second[item_B][:, None]
        types_BL = ((second_B > 0) & (column_L >= second_B)).astype(np.int32) * segments_BL
        batch = {"tokens_BL": tokens_BL, "types_BL": types_BL, "segments_BL": segments_BL}
        if self.by_token:
            labels_BL = np.full_like(tokens_BL, IGNORED)
            copy_pieces(labels_BL, rows_B, first, self.labels, self.starts[item_B], lengths_B)
            batch["labels_BL"] = labels_BL
        else:
            batch["labels_B"] = self.labels[item_B]
        if self.groups is not None:
            batch["groups_B"] = self.groups[item_B]
        if self.credits is not None:
            batch["credits_B"] = self.credits[item_B]
        return batch | {"row_weights_B": real_B.astype(np.float32)}


class WindowExamples(PaddedExamples):
    """Rows of which a record may have several; they know their number, counted from `first`."""

    first = 0

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """As PaddedExamples', and window_B [B] int32."""
        numbers_B = (self.first + np.maximum(index_B, 0)).astype(np.int32)
        return super().batch(epoch_B, index_B, width) | {"window_B": numbers_B}


class PackedExamples(PaddedExamples, SharedRowExamples):
    """The same records, those of a batch together in as few rows as they fit into, each for itself: nearly nothing is padding.

    A row is as long as the longest record, rounded up, and has K slots for records. A batch holds what it would hold without sharing;
    where its records stand changes nothing but dropout's draws.
    """

    def __init__(
        self, store: TokenStore, arrays: dict[str, np.ndarray], pad_id: int, max_length: int, by_token: bool
    ) -> None:
        super().__init__(store, arrays, pad_id, max_length, by_token)
        self.longest = min(max_length, rounded(int(self.lengths.max(initial=1))))
        self.slots = max(1, self.longest // _LEAST)
        # So that no row has more records than slots:
        self.sizes = np.maximum(self.lengths, min(_LEAST, self.longest))
        self.notes = f"records share rows of {self.longest} tokens"

    def example_lengths(self) -> None:
        return None  # rows are equally long

    def arrange(self, index_AB: np.ndarray, ways: int) -> np.ndarray:
        """The records of each row, see SharedRowExamples; R is one of few numbers, so that few shapes are compiled."""
        packs = [pack(self.sizes[index_B], self.longest) for index_B in index_AB]
        rows = min(bucket_size(ceil_div(max(map(len, packs)), ways)) * ways, index_AB.shape[1])
        index_ARK = np.full((len(index_AB), rows, self.slots), -1, np.int64)
        for index_RK, index_B, packed in zip(index_ARK, index_AB, packs, strict=True):
            row_P = np.repeat(np.arange(len(packed)), np.diff(packed.starts))
            index_RK[row_P, exclusive_cumsum(np.ones_like(row_P), row_P)] = index_B[packed.items]
        return index_ARK

    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """tokens, types, segments, positions [B, L] int32; labels [B, K] or [B, K, C], or [B, L] of tokens; row_weights [B, K]."""
        there_BK = index_BK >= 0
        row_P, slot_P = np.nonzero(there_BK)
        item_P = index_BK[there_BK]
        start_P, length_P = self.starts[item_P], self.lengths[item_P]
        column_P = exclusive_cumsum(length_P, row_P)
        shape = (len(index_BK), self.longest)
        names = ("types_BL", "segments_BL", "positions_BL")
        batch = {"tokens_BL": np.full(shape, self.pad, np.int32)} | {name: np.zeros(shape, np.int32) for name in names}
        copy_pieces(batch["tokens_BL"], row_P, column_P, self.store.tokens, start_P, length_P)
        mark_pieces(batch["segments_BL"], row_P, column_P, length_P, slot_P + 1)
        mark_pieces(batch["positions_BL"], row_P, column_P, length_P, None)
        pair_P, second_P = self.second[item_P] > 0, self.second[item_P]
        row_Q, column_Q, length_Q = (x[pair_P] for x in (row_P, column_P + second_P, length_P - second_P))
        mark_pieces(batch["types_BL"], row_Q, column_Q, length_Q, 1)
        if self.by_token:
            batch["labels_BL"] = np.full(shape, IGNORED, np.int32)
            copy_pieces(batch["labels_BL"], row_P, column_P, self.labels, start_P, length_P)
        else:
            batch["labels_BK"] = self.labels[np.maximum(index_BK, 0)]
        return batch | {"row_weights_BK": there_BK.astype(np.float32)}


def flatten_slots(batch: Batch) -> Batch:
    """A batch whose records share rows, with what each record has ([B, K, ...]) as [B x K, ...]; others as they are."""
    if "row_weights_BK" not in batch:
        return batch
    each = {name: x for name, x in batch.items() if name.endswith("_BK")}
    rest = {name: x for name, x in batch.items() if name not in each}
    return rest | {name.removesuffix("K"): x.reshape(-1, *x.shape[2:]) for name, x in each.items()}


class LabelObjective(Objective):
    """A loss over the head's outputs, of records with labels.

    Attributes:
      by_token: whether tokens have labels, and not records.
    """

    normalizer_names: tuple[str, ...] = ("rows", "real")
    by_token: ClassVar[bool] = False

    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        """The numbers of `rows` with a label and of `real` input tokens."""
        weights, segments = flatten_slots(batch)["row_weights_B"], batch["segments_BL"]
        return {"rows": weights.sum(), "real": (segments > 0).sum().astype(jnp.float32)}

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """The head's output for a batch, in float32; where records share rows, of each slot [B, K, C] or token."""
        tokens_BL, segments_BL = batch["tokens_BL"], batch["segments_BL"]
        slots = batch["row_weights_BK"].shape[1] if "row_weights_BK" in batch else 0
        keys = (None, None) if key is None else jax.random.split(key)
        types_BL = batch["types_BL"] if model.arch.num_types > 1 else None
        stack = model.decoder if model.arch.causal else model.encoder
        x_BLD = stack(tokens_BL, segments_BL, batch.get("positions_BL"), types_BL, keys[0])
        return model.classify(x_BLD, tokens_BL, segments_BL, keys[1], slots)

    @abc.abstractmethod
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        """The sum of each metric, of a batch whose records have a row each."""

    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        logits = self.logits(model, batch, key)
        if not self.by_token and "row_weights_BK" in batch:
            logits = logits.reshape(-1, *logits.shape[2:])
        return self.logit_sums(logits, flatten_slots(batch))


class Task(Trainable[LabeledCorpus]):
    """A labeled task of one run: from records to examples, and from what a model makes of them to predictions and metrics.

    Attributes:
      examples_class: how its records become rows.
      supports_packing: whether its records can share rows (data.packing).
      metric_kind: what its predictions are, a key of metrics.KINDS.
      metric_names: the metrics of these, in addition to those of its objective; one of the user's own that task.metric names is among them.
      labels: names in order, () where labels are values.
      metric: name of the metric that tells which of two models is better; several with + between count by their mean.
      lower_is_better: whether that is the smaller one.
      exact: whether predictions are written with all logits of a record.
      grouped: whether records belong together in groups.
      has_predictions: whether there is a prediction for each record in the end.
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
                f"config.task.metric={self.metric} adds metrics of which one is better high, another low."
            )
        self.lower_is_better = lower.pop()

    @abc.abstractmethod
    def make_objective(self) -> Objective:
        """What the model learns; config, corpus, tokenizer and labels are known."""

    @classmethod
    @abc.abstractmethod
    def reader(cls, config: Config) -> Reader:
        """Of the task's records."""

    @classmethod
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
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = HERE, bars: Bars = no_bar
    ) -> LabeledCorpus:
        return open_labeled(config, workdir, cls.reader(config), log)

    @classmethod
    def num_labels(cls, config: Config, corpus: LabeledCorpus) -> int:
        """Classes of the head, 1 for a value."""
        return max(1, len(corpus.labels))

    @classmethod
    def define(cls, config: Config, vocab_size: int, corpus: LabeledCorpus) -> ModelDefinition:
        head = HeadSpec(cls.head(config), cls.num_labels(config, corpus))
        return define(define_model(config.model, vocab_size).arch, head)

    def examples(self, store: TokenStore, purpose: str) -> Examples:
        part = self.corpus.part_of(store)
        # What is predicted is told record by record, so held-out records have rows of their own.
        packed = self.config.data.packing and self.supports_packing and purpose == "train"
        kind = PackedExamples if packed else self.examples_class
        by_token = isinstance(self.objective, LabelObjective) and self.objective.by_token
        made = kind(store, self.corpus.arrays[part], self.tokenizer.pad_id, self.config.data.max_length, by_token)
        if isinstance(made, WindowExamples):
            made.first = self.corpus.first_of(part)
        return made

    @abc.abstractmethod
    def default_metric(self) -> str:
        """The metric that papers report."""

    def metric_inputs(self) -> tuple[str, ...]:
        """What there is for metrics to be computed of, by the names of metrics.KINDS."""
        return metrics.KINDS[self.metric_kind]

    def ranking_metrics(self) -> list[str]:
        """The metrics that models can be ordered by, those of `metric_names` first."""
        known = metrics.names_for(self.metric_kind, self.metric_inputs())
        return list(dict.fromkeys([*self.metric_names, *known]))

    @abc.abstractmethod
    def scored(self, outputs: list[Outputs]) -> metrics.Scored | None:
        """The predictions of a whole part as metrics want them; None if there are none."""

    def scores(self, outputs: list[Outputs]) -> dict[str, float]:
        found = self.scored(outputs)
        return found.score(self.metric_names) if found else {}

    @abc.abstractmethod
    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """One prediction a record, for predictions.jsonl."""

    def rank(self, scores: Mapping[str, float]) -> float:
        value = self.value(scores)
        return value if self.lower_is_better else -value

    def value(self, scores: Mapping[str, float]) -> float:
        """Of the metric, or the mean of those that `+` joins."""
        return float(np.mean([scores[f"eval_{name}"] for name in self.metric.split("+")]))

    def summarize(self, scores: Mapping[str, float]) -> str:
        """The end of a run, in words."""
        return f"held-out {self.metric}: {self.value(scores):.4g} ({self.baseline()})"

    # ---------------------------------------------------------------- what goes with the finished model

    def write_files(self, directory: pathlib.Path, arch: Architecture) -> None:
        """Writes into the finished model's directory what its users need in addition to model and tokenizer; nothing, for most tasks."""
        return

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """A config.json of the fine-tuned model, with what its users must know of the task."""
        return config

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Files that go with the fine-tuned model in addition to its tokenizer's, and in place of those of the same name."""
        return {}

    def checkpoint_files(self, model: dict[str, Any], arch: Architecture) -> dict[str, bytes]:
        model["config"] = self.update_hf_config(dict(model["config"]))
        return self.files(arch)


TASKS: Variants[type[Task]] = registries.TASKS


class LabelTask(Task):
    """A task whose evaluation keeps the outputs of the model's head."""

    objective: LabelObjective

    @abc.abstractmethod
    def make_objective(self) -> LabelObjective: ...

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Logits, labels and the weight of each row."""
        names = ("labels_B", "labels_BL", "groups_B", "credits_B", "window_B", "row_weights_B")
        kept = {name: batch[name] for name in names if name in batch}
        return kept | {"logits": self.objective.logits(model, batch, None)}

    def by_record(self, outputs: list[Outputs], *names: str) -> Iterator[tuple[str, int, list[tuple[Any, ...]]]]:
        """(part, record, [(row, its outputs of these names)]) of each record of a part whose rows are WindowExamples, in order.

        If not all rows were read (eval.num_batches), a last record that lacks some is left out, unless it is the only one.
        """
        numbers = np.concatenate([drop_padding(output, "window_B") for output in outputs])
        part, _ = self.corpus.locate(int(numbers[0]))
        first = self.corpus.first_of(part)
        record = self.corpus.records_of_rows(part)
        counts = np.bincount(record)
        read = ([x for output in outputs for x in drop_padding(output, name)] for name in names)
        rows = zip((numbers - first).tolist(), *read, strict=True)
        for number, own in itertools.groupby(rows, lambda row: int(record[row[0]])):
            whole = list(own)
            if len(whole) == counts[number] or number == record[numbers[0] - first]:
                yield part, number, whole

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """With the labels, of a head that predicts labels."""
        if self.head(self.config) not in ("classification", "token_classification"):
            return config
        outputs = self.num_labels(self.config, self.corpus)
        labels = self.labels or [f"LABEL_{number}" for number in range(outputs)]
        return config | {
            "id2label": {str(number): name for number, name in enumerate(labels)},
            "label2id": {name: number for number, name in enumerate(labels)},
        }


def drop_padding(outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """An output without the empty rows that fill up the last batch."""
    return outputs[name][outputs["row_weights_B"] > 0]


def joined(outputs: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    """An output of all batches, one after another, without empty rows."""
    return np.concatenate([drop_padding(output, name) for output in outputs])

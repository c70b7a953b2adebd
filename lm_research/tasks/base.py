"""What every labelled task shares: an objective whose examples have labels, and whose evaluation keeps the model's outputs.

Legend: B batch, L length, N records.
"""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.config import Config
from lm_research.data.corpus import Corpus
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError, suggest
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import define_model
from lm_research.models.heads import Head
from lm_research.objectives.base import Batch, Objective, Sums
from lm_research.objectives.rows import copy_pieces
from lm_research.tasks.labelled import IGNORED, Labelled, Reader, open_labelled
from lm_research.tasks.records import Record
from lm_research.tasks.rows import rounded


class Rows:
    """Records of a data set as padded rows, by number."""

    def __init__(
        self, store: TokenStore, arrays: dict[str, np.ndarray], pad_id: int, max_length: int, by_token: bool
    ) -> None:
        starts = np.asarray(store.document_starts)
        self.starts = np.asarray(store.sentence_starts)[starts]
        self.lengths, self.store, self.pad, self.longest = np.diff(self.starts), store, pad_id, max_length
        self.labels, self.second, self.by_token = arrays["labels"], arrays["second"], by_token
        self.num_examples, self.notes = store.num_documents, ""
        self.groups: np.ndarray | None = None  # numbers that are equal where records belong together
        self.credits: np.ndarray | None = None  # what it is worth to choose a record of its group

    def width(self, index_B: np.ndarray) -> int:
        """Length of the rows of a global batch: that of the longest, rounded up."""
        return min(self.longest, rounded(int(self.lengths[np.maximum(index_B, 0)].max(initial=1))))

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


class Task(Objective):
    """A labelled task of one run.

    Attributes:
      labels: names in order, () where labels are values.
      metric: name of the metric that tells which of two models is better; several with + between count by their mean.
      lower_is_better: whether that is the smaller one.
    """

    token_term = ""
    predicted_share = 0.0
    by_token: ClassVar[bool] = False
    rows: ClassVar[type[Rows]] = Rows
    metric_names: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config, corpus: Labelled) -> None:
        super().__init__(config, corpus.tokenizer)
        self.labels, self.corpus = corpus.labels, corpus
        self.metric = config.task.metric or self.usual_metric()
        names, valid = self.metric.split("+"), (*self.metric_names, *self.loss_terms)
        for name in names:
            if name not in valid:
                raise ConfigError(f"config.task.metric is {self.metric!r}. {suggest(name, valid)}")
        lower = {name.endswith(("_nats", "_error")) for name in names}
        if len(lower) > 1:
            raise ConfigError(
                f"config.task.metric={self.metric} adds metrics of which one is better high, another low."
            )
        self.lower_is_better = lower.pop()

    @abc.abstractmethod
    def usual_metric(self) -> str:
        """The metric that papers report."""

    @classmethod
    @abc.abstractmethod
    def reader(cls, config: Config) -> Reader:
        """Of the task's records."""

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        if not config.task.train:
            raise ConfigError(
                f"config.task.name={config.task.name} needs labelled records: name a .jsonl, .csv, .tsv or .parquet file or "
                "tfds:NAME in --config.task.train."
            )

    @classmethod
    def open_corpus(cls, config: Config, workdir: pathlib.Path, log: Callable[[str], None]) -> Labelled:
        return open_labelled(config, workdir, cls.reader(config), log)

    @classmethod
    def num_labels(cls, config: Config, corpus: Labelled) -> int:
        """Classes of the head, 1 for a value."""
        return max(1, len(corpus.labels))

    @classmethod
    def define_for(cls, config: Config, vocab_size: int, corpus: Labelled) -> ModelDefinition:
        """The model of a run that starts from nothing."""
        head = Head(cls.head(config), cls.num_labels(config, corpus))
        return define(define_model(config.model, vocab_size).arch, head)

    def part_of(self, store: TokenStore) -> str:
        """Which part of the data set a store is."""
        return {id(self.corpus.train): "train", id(self.corpus.validation): "validation"}.get(id(store), "test")

    def examples(self, store: TokenStore, purpose: str) -> Rows:
        arrays = self.corpus.arrays[self.part_of(store)]
        return self.rows(store, arrays, self.tokenizer.pad_id, self.config.data.max_length, self.by_token)

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """The head's output for a batch, in float32."""
        tokens_BL, segments_BL = batch["tokens_BL"], batch["segments_BL"]
        keys = (None, None) if key is None else jax.random.split(key)
        types_BL = batch["types_BL"] if model.arch.num_types > 1 else None
        stack = model.decoder if model.arch.causal else model.encoder
        x_BLD = stack(tokens_BL, segments_BL, types_BL=types_BL, dropout_key=keys[0])
        return model.classify(x_BLD, tokens_BL, segments_BL, keys[1])

    @abc.abstractmethod
    def sums_of(self, logits: jax.Array, batch: Batch) -> Sums:
        """Sums of the metrics that are sums."""

    def sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        return self.sums_of(self.logits(model, batch, key), batch)

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """What an evaluation keeps of a batch: logits, labels and the weight of each row."""
        names = ("labels_B", "labels_BL", "groups_B", "credits_B", "row_weights_B")
        kept = {name: batch[name] for name in names if name in batch}
        return kept | {"logits": self.logits(model, batch, None)}

    @abc.abstractmethod
    def scores(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """All metrics of `metric_names`, of the outputs of a whole part."""

    @abc.abstractmethod
    def baseline(self) -> str:
        """How well one does without a model, in words."""

    @abc.abstractmethod
    def records_of(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """One prediction a record, for predictions.jsonl."""

    def write_beside(self, directory: pathlib.Path, arch: Architecture) -> None:
        """Writes into the finished model's directory what its users need beside model and tokenizer; nothing, for most tasks."""
        return

    def shown(self, store: TokenStore, number: int) -> dict[str, Any]:
        """What predictions.jsonl says of a record beside: its text, as the tokenizer gives it back."""
        return {"text": self.tokenizer.decode(store.document_tokens(number).tolist())}

    def predicted(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("a task predicts labels, not tokens")

    def remembered(self, config: dict[str, Any]) -> dict[str, Any]:
        """A config.json of the fine-tuned model, with what its users must know of the task."""
        return config

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Files that go with the fine-tuned model beside its tokenizer's, and in place of those of the same name."""
        return {}

    def words_of(self, scores: dict[str, float]) -> str:
        """The end of a run, in words."""
        return f"held-out {self.metric}: {self.value(scores):.4g} ({self.baseline()})"

    def value(self, scores: dict[str, float]) -> float:
        """Of the metric, or the mean of those that `+` joins."""
        return float(np.mean([scores[f"eval_{name}"] for name in self.metric.split("+")]))


def real(outputs: dict[str, np.ndarray], name: str) -> np.ndarray:
    """An output without the empty rows that fill up the last batch."""
    return outputs[name][outputs["row_weights_B"] > 0]


def corpus_labels(corpus: Corpus) -> Sequence[str]:
    """Label names of a data set; () of one without."""
    return getattr(corpus, "labels", ())


def text_of(record: Record, config: Config) -> list[str]:
    """The one or two texts of a record."""
    task = config.task
    texts = [record.text(task.text_key, "text_key")]
    return texts + ([record.text(task.pair_key, "pair_key")] if task.pair_key else [])


def total_of(batch: Batch) -> dict[str, jax.Array]:
    """ "rows" with a label, and "real" input tokens."""
    return {
        "rows": batch["row_weights_B"].sum(),
        "real": (batch["segments_BL"] > 0).sum().astype(jnp.float32),
    }

"""What training, evaluation and planning know of objectives and tasks: three contracts, of which every member is declared here.

Objective       what a model learns from a batch, on the device: metrics as sums, what divides them, the loss
Trainable       what a run is about: it has an objective, says which model it needs and gives it examples; a task is one
TextObjective   an objective that learns from text alone, and so is what a run is about itself: one file each in this package
"""

from __future__ import annotations

import abc
import functools
import operator
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np

from lm_research.config import Config, registries
from lm_research.config.variants import Variants
from lm_research.data.corpus import HERE, Bars, Corpus, Log, no_bar, open_corpus
from lm_research.data.sampler import Examples
from lm_research.data.store import TokenStore
from lm_research.data.workers import Runner
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import define_model
from lm_research.models.heads import Projection
from lm_research.objectives.cross_entropy import smoothing, token_loss
from lm_research.tokenizers.base import Tokenizer

AnyCorpus = TypeVar("AnyCorpus", bound=Corpus)

Batch = Mapping[str, jax.Array]
# Metric name -> sum over the batch. Each is divided by the normalizer that `Objective.metrics` names for it.
Sums = dict[str, jax.Array]
Outputs = dict[str, np.ndarray]  # what an evaluation keeps of a batch


class Objective(abc.ABC):
    """What a model learns from a batch.

    Attributes:
      normalizer_names: names of what sums are divided by.
      metrics: metric name -> name of the normalizer that divides its sum.
      loss_terms: the metrics whose means add up to the loss, in nats.
      token_loss_name: the one among them that is a mean over predicted tokens (perplexity, bits per byte); None where labels are predicted.
      target_fraction: the fraction of positions that the vocabulary projection is computed for (FLOP count); 0 where labels are predicted.
    """

    normalizer_names: tuple[str, ...]
    metrics: Mapping[str, str]
    loss_terms: tuple[str, ...]
    token_loss_name: str | None = None
    target_fraction: float = 0.0

    @abc.abstractmethod
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        """Weights of a batch: "tokens" predicted, "real" non-padding input tokens, and others `metrics` divides by.

        Sums over whatever leading axes the batch has, so that accumulated micro-batches weigh by what they hold.
        """

    @abc.abstractmethod
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        """Forward pass over one micro-batch: the sum of each metric. `key` is None without dropout."""

    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Ids of the tokens that are predicted and their weights; asked for only where there is a `token_loss_name`."""
        raise NotImplementedError

    def loss(self, sums: Sums, normalizers: Mapping[str, jax.Array]) -> jax.Array:
        """The scalar that is minimized: the sum of the loss terms' means."""
        means = (sums[term] / normalizers[self.metrics[term]].clip(1.0) for term in self.loss_terms)
        return functools.reduce(operator.add, means)


class Trainable(abc.ABC, Generic[AnyCorpus]):
    """What a run is about: a task, or an objective on text.

    Attributes:
      kinds: the kinds of architecture it trains (Architecture.kind).
      delivers_best: whether a finished run ends with its best model, the predictions of that, and its scores.
      pretraining: the name of an objective on text, which the special tokens around its texts follow from; "" for a task.
      config, tokenizer: of the run.
      objective: what the model learns from its examples.
    """

    kinds: ClassVar[tuple[str, ...]]
    delivers_best: ClassVar[bool] = False
    pretraining: str = ""
    config: Config
    tokenizer: Tokenizer
    objective: Objective

    @classmethod
    @abc.abstractmethod
    def head(cls, config: Config) -> str:
        """The head (a key of head_kinds.HEADS) that its model needs."""

    @classmethod
    def num_labels(cls, config: Config, corpus: AnyCorpus) -> int | None:
        """Outputs of the head; None where its kind says how many."""
        return None

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        """Raises a ConfigError if keys of the run do not go together with it."""
        return

    @classmethod
    @abc.abstractmethod
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = HERE, bars: Bars = no_bar
    ) -> Corpus:
        """What a run reads; builds it if need be, see data.corpus.open_corpus. One that is built in a single step has no use for a runner."""

    @classmethod
    @abc.abstractmethod
    def define(cls, config: Config, vocab_size: int, corpus: AnyCorpus) -> ModelDefinition:
        """The model of a run that starts from nothing; `check` has passed."""

    @abc.abstractmethod
    def examples(self, store: TokenStore, purpose: str) -> Examples:
        """Examples of a store of the corpus; `purpose` ("train", "validation", or "final", the end of a run) separates their random streams."""

    def start_token(self) -> int | None:
        """Id of the token that a decoder begins its targets with, where the config of the run decides it."""
        return None

    def target_counts(self, store: TokenStore) -> np.ndarray:
        """How often each id occurs in the part of a store's text that is predicted, [V]; all of it, for most objectives."""
        return np.asarray(store.token_counts)

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """What an evaluation keeps of each batch in addition to sums."""
        return {}

    def scores(self, outputs: list[Outputs]) -> dict[str, float]:
        """Metrics that are not sums, of what was kept."""
        return {}

    def samples(self, outputs: list[Outputs], count: int) -> list[str]:
        """A few lines to read about what was kept."""
        return []

    def rank(self, scores: Mapping[str, float]) -> float:
        """What orders models by the scores of an evaluation; the smaller the better."""
        return scores["eval_loss_nats"]

    def baseline(self) -> str:
        """How well one does without a model, in words; of text the evaluation itself tells it."""
        return ""

    def checkpoint_files(self, model: dict[str, Any], arch: Architecture) -> dict[str, bytes]:
        """Files of a checkpoint that tell how its model is used; `model` is the content of model.json, which is completed here."""
        return {}


class TextObjective(Objective, Trainable[Corpus]):
    """An objective on the text of a corpus; its name is registered for config.objective.name."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer, self.objective = config, tokenizer, self
        self.pretraining = config.objective.name

    @classmethod
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = HERE, bars: Bars = no_bar
    ) -> Corpus:
        return open_corpus(config, workdir, log, runner, bars)

    @classmethod
    def define(cls, config: Config, vocab_size: int, corpus: Corpus | None = None) -> ModelDefinition:
        return define_model(config.model, vocab_size, cls.head(config))


OBJECTIVES: Variants[type[TextObjective]] = registries.OBJECTIVES


class NextTokenObjective(Objective):
    """Predicts the next token at every position with a weight: [B, L] targets and weights.

    Attributes:
      label_smoothing: probability that is spread evenly over the vocabulary; what that adds to the loss is a term of its own.
    """

    normalizer_names = ("tokens", "real")
    metrics: Mapping[str, str] = {"lm_loss_nats": "tokens", "lm_accuracy": "tokens"}
    loss_terms: tuple[str, ...] = ("lm_loss_nats",)
    token_loss_name = "lm_loss_nats"
    target_fraction = 1.0
    label_smoothing: float = 0.0

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        if label_smoothing:
            self.metrics = {**self.metrics, "smoothing_nats": "tokens"}
            self.loss_terms += ("smoothing_nats",)

    @abc.abstractmethod
    def projection(self, model: Any, batch: Batch, key: jax.Array | None) -> Projection:
        """What tokens are predicted from."""

    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch["targets_BL"], batch["weights_BL"]

    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        projection, targets = self.projection(model, batch, key), self.targets(batch)
        loss, correct = token_loss(projection, *targets)
        sums = {"lm_loss_nats": loss, "lm_accuracy": correct}
        if self.label_smoothing:
            sums["smoothing_nats"] = self.label_smoothing * smoothing(projection, *targets)
        return sums

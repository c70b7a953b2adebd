"""The three contracts between objectives and tasks and the rest of the library. Every member that others use is declared here.

Objective       computes the loss and metrics of a batch on the device, as sums and the normalizers that divide them
Trainable       what a run trains: an objective with its model head, corpus and examples; every task is one
TextObjective   an objective that needs only text, and is therefore a Trainable itself; one file each in this package
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import operator
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np
from typing_extensions import override

from lm_research.config import Config, ObjectiveConfig, key, registries
from lm_research.config.variants import Variants
from lm_research.data.corpus import LOCAL_RUNNER, Bars, Corpus, Log, no_bar, open_corpus
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
Outputs = dict[str, np.ndarray]  # arrays of a batch that an evaluation collects


class Objective(abc.ABC):
    """Loss and metrics of a batch.

    Attributes:
      normalizer_names: names of the normalizers that sums are divided by.
      metrics: metric name -> name of the normalizer that divides its sum.
      loss_terms: the metrics whose means add up to the loss, in nats.
      token_loss_name: the loss term that is a mean over predicted tokens (for perplexity and bits per byte); None if labels are predicted.
      target_fraction: fraction of positions that the vocabulary projection is computed for (FLOP count); 0 if labels are predicted.
    """

    normalizer_names: tuple[str, ...]
    metrics: Mapping[str, str]
    loss_terms: tuple[str, ...]
    token_loss_name: str | None = None
    target_fraction: float = 0.0

    @abc.abstractmethod
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        """Compute a batch's normalizers: predicted "tokens", "real" (non-padding) input tokens, and any other that `metrics` names.

        Sums over all leading axes of the batch, so that accumulated micro-batches are weighted by their content.
        """

    @abc.abstractmethod
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        """Run the forward pass over one micro-batch and sum each metric. `key` is None without dropout."""

    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return the ids of predicted tokens and their weights; called only if `token_loss_name` is set."""
        raise NotImplementedError

    def loss(self, sums: Sums, normalizers: Mapping[str, jax.Array]) -> jax.Array:
        """Compute the scalar that is minimized: the sum of the loss terms' means."""
        means = (sums[term] / normalizers[self.metrics[term]].clip(1.0) for term in self.loss_terms)
        return functools.reduce(operator.add, means)


class Trainable(abc.ABC, Generic[AnyCorpus]):
    """What a run trains: a task, or an objective on text.

    Attributes:
      kinds: the kinds of architecture it can train (Architecture.kind).
      delivers_best: whether a finished run exports its best model with that model's predictions and scores.
      pretraining: the name of a text objective, which decides the special tokens around texts; "" for a task.
      config, tokenizer: those of the run.
      objective: the loss and metrics of its batches.
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
        """Return the head (a key of head_kinds.HEADS) that the model needs."""

    @classmethod
    def num_labels(cls, config: Config, corpus: AnyCorpus) -> int | None:
        """Return the number of outputs of the head; None if the head's kind fixes it."""
        return None

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        """Raise a ConfigError if keys of the run's config contradict each other or the architecture."""
        return

    @classmethod
    @abc.abstractmethod
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = LOCAL_RUNNER, bars: Bars = no_bar
    ) -> Corpus:
        """Open the run's corpus, building it if necessary; see data.corpus.open_corpus. A corpus that is built in one step ignores `runner`."""

    @classmethod
    @abc.abstractmethod
    def define(cls, config: Config, vocab_size: int, corpus: AnyCorpus) -> ModelDefinition:
        """Define the model of a run that starts from random weights; `check` has passed."""

    @abc.abstractmethod
    def examples(self, store: TokenStore, purpose: str) -> Examples:
        """Build the examples of one of the corpus's stores; `purpose` ("train", "validation", or "final" at the end of a run) separates random streams."""

    @property
    def evaluates_more_at_end(self) -> bool:
        """Whether the evaluation at the end of a run computes more than those before it."""
        return False

    def start_token(self) -> int | None:
        """Return the id of the token that a decoder's targets begin with, if the run's config decides it."""
        return None

    def target_counts(self, store: TokenStore) -> np.ndarray:
        """Count how often each id occurs among the tokens of a store that can be predicted, [V]; by default all tokens."""
        return np.asarray(store.token_counts)

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Compute the arrays that an evaluation collects from each batch in addition to sums."""
        return {}

    def scores(self, outputs: list[Outputs]) -> dict[str, float]:
        """Compute the metrics that are not sums, from the collected outputs."""
        return {}

    def samples(self, outputs: list[Outputs], count: int) -> list[str]:
        """Describe a few of the collected outputs, one line each."""
        return []

    def rank(self, scores: Mapping[str, float]) -> float:
        """Return the value that models are ranked by after an evaluation; lower is better."""
        return scores["eval_loss_nats"]

    def baseline(self) -> str:
        """Describe the score of a trivial predictor; "" for text, where the evaluation loop reports its own baselines."""
        return ""

    def checkpoint_files(self, model: dict[str, Any], arch: Architecture) -> dict[str, bytes]:
        """Return extra files of a checkpoint that describe how its model is used; completes `model`, the content of model.json, in place."""
        return {}


class TextObjective(Objective, Trainable[Corpus]):
    """An objective on the text of a corpus, registered under its config.objective.name."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer, self.objective = config, tokenizer, self
        self.pretraining = config.objective.name

    @classmethod
    @override
    def open_corpus(
        cls, config: Config, workdir: pathlib.Path, log: Log, runner: Runner = LOCAL_RUNNER, bars: Bars = no_bar
    ) -> Corpus:
        return open_corpus(config, workdir, log, runner, bars)

    @classmethod
    @override
    def define(cls, config: Config, vocab_size: int, corpus: Corpus | None = None) -> ModelDefinition:
        return define_model(config.model, vocab_size, cls.head(config))


OBJECTIVES: Variants[type[TextObjective]] = registries.OBJECTIVES


@dataclasses.dataclass(frozen=True)
class SmoothedConfig(ObjectiveConfig):
    """Settings of objectives that predict tokens."""

    label_smoothing: float = key(
        0.0,
        "Probability spread evenly over all tokens during training (0.1 in Vaswani et al. 2017); its loss is the separate metric "
        "smoothing_nats.",
        low=0.0,
        high=0.99,
    )


def label_smoothing(config: Config) -> float:
    """Return the smoothed probability of a run's objective; 0 for an objective of a plugin whose settings lack it."""
    return config.objective.label_smoothing if isinstance(config.objective, SmoothedConfig) else 0.0


class NextTokenObjective(Objective):
    """Predicts the next token at every position with a weight: [B, L] targets and weights.

    Attributes:
      label_smoothing: probability that is spread evenly over the vocabulary; its part of the loss is reported as a separate term.
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
        """Run the model and return the hidden states and table that tokens are predicted from."""

    @override
    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch["targets_BL"], batch["weights_BL"]

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        projection, targets = self.projection(model, batch, key), self.targets(batch)
        loss, correct = token_loss(projection, *targets)
        sums = {"lm_loss_nats": loss, "lm_accuracy": correct}
        if self.label_smoothing:
            sums["smoothing_nats"] = self.label_smoothing * smoothing(projection, *targets)
        return sums

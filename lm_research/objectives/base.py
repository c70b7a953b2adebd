"""What every objective offers to the training step, the evaluation and the feed."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from lm_research.config import Config, registries
from lm_research.config.variants import Variants
from lm_research.data.corpus import Corpus, open_corpus
from lm_research.data.order import Examples
from lm_research.data.store import TokenStore
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import define_model
from lm_research.tokenizers.base import Tokenizer

Batch = dict[str, jax.Array]
# Metric name -> sum over the batch. Each is divided by the total named by its weight to give the metric.
Sums = dict[str, jax.Array]


class Objective(abc.ABC):
    """An objective of one run.

    Attributes:
      kinds: the kinds of architecture it trains (Architecture.kind).
      total_names: names of the totals.
      metrics: metric name -> name of the total that divides its sum.
      loss_terms: the metrics whose means add up to the loss, in nats.
      token_term: the one among them that is a mean over predicted tokens (perplexity, bits per byte); "" of a task.
    """

    kinds: ClassVar[tuple[str, ...]]
    total_names: tuple[str, ...]
    metrics: dict[str, str]
    loss_terms: tuple[str, ...]
    token_term: str

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer

    @classmethod
    @abc.abstractmethod
    def head(cls, config: Config) -> str:
        """The head (a key of heads.HEADS) that its model needs."""

    @classmethod
    def define(cls, config: Config, vocab_size: int) -> ModelDefinition:
        """The model it trains; `check` has passed."""
        return define_model(config.model, vocab_size, cls.head(config))

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        """Raises a ConfigError if keys of the run do not go together with this objective."""
        return

    @classmethod
    def open_corpus(cls, config: Config, workdir: pathlib.Path, log: Callable[[str], None]) -> Corpus:
        """What a run reads; builds it if need be, see data.corpus.open_corpus."""
        return open_corpus(config, workdir, log)

    @abc.abstractmethod
    def examples(self, store: TokenStore, purpose: str) -> Examples:
        """Examples of a store; `purpose` ("train", "validation") separates their random streams."""

    @abc.abstractmethod
    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        """Weights of a batch: "tokens" predicted, "real" non-padding input tokens, and others `metrics` divides by.

        Sums over whatever leading axes the batch has, so that accumulated micro-batches weigh by what they hold.
        """

    @abc.abstractmethod
    def sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        """Forward pass over one micro-batch: the sum of each metric. `key` is None without dropout."""

    @abc.abstractmethod
    def predicted(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Ids of the tokens that are predicted and their weights."""

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """What an evaluation keeps of each batch beside sums; nothing, but for labelled tasks (tasks/base.py)."""
        return {}

    def scores(self, outputs: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics that are no sums, of what was kept."""
        return {}

    def samples(self, outputs: list[dict[str, Any]], count: int) -> list[str]:
        """A few lines to read about what was kept."""
        return []

    def predicted_counts(self, store: TokenStore) -> np.ndarray:
        """How often each id occurs in the part of a store's text that is predicted, [V]; all of it, for most objectives."""
        return np.asarray(store.token_counts)

    @property
    @abc.abstractmethod
    def predicted_share(self) -> float:
        """Share of positions the vocabulary projection is computed for (FLOP count)."""

    def loss(self, sums: Sums, totals: dict[str, jax.Array]) -> jax.Array:
        """The scalar that is minimised: the sum of the loss terms' means."""
        return sum(sums[term] / totals[self.metrics[term]].clip(1.0) for term in self.loss_terms)


OBJECTIVES: Variants[type[Objective]] = registries.OBJECTIVES


class NextTokenObjective(Objective):
    """One that predicts the next token at every position with a weight: [B, L] targets and weights."""

    total_names = ("tokens", "real")
    metrics = {"lm_loss_nats": "tokens", "lm_accuracy": "tokens"}
    loss_terms = ("lm_loss_nats",)
    token_term = "lm_loss_nats"
    predicted_share = 1.0

    def predicted(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch["targets_BL"], batch["weights_BL"]

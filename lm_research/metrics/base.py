"""Metrics by name, what they may ask for, and how they are computed of all records or of any sample of them.

Legend: N records, I records of a sample, C classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lm_research.config.registries import METRICS as _METRICS
from lm_research.config.variants import Variants

# Kind of predictions -> what a metric of such may ask for, by the names of its parameters. All but the last ones, the options, are by record.
KINDS: dict[str, tuple[str, ...]] = {
    # Numbers of classes [N]; groups (numbers, equal where records belong together) and credits (the worth of choosing a record) where there are any.
    "single_label": ("predictions", "references", "logits", "groups", "credits", "num_labels"),
    "multi_label": ("predictions", "references"),  # which labels a record has, bool [N, C]
    "values": ("predictions", "references"),  # [N], or several values [N, C]
    "tags": ("predictions", "references"),  # lists of tags, one a word
    "choices": ("predictions", "references", "logits"),  # numbers of choices
    # Texts, and lists of the right ones; of data with questions that have none (null) the best answer and how far the score of none is above it.
    "answers": ("predictions", "references", "best_answers", "margins", "null"),
    "texts": ("predictions", "references", "bleu_tokenizer", "rouge_tokenizer"),
    "ranks": ("ranks",),  # of each right text, from 1
    "likelihoods": ("nats", "tokens", "words", "bytes"),  # nats: log-likelihood; the others count
    # Whatever a task predicts, and what it says itself of each record.
    "records": ("predictions", "references", "exact_match", "f1"),
    "minimal_pairs": ("good_nats", "bad_nats", "good_tokens", "bad_tokens"),
}
_OPTIONS = ("num_labels", "null", "bleu_tokenizer", "rouge_tokenizer")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: as in task.metric, results and suites.
      higher_is_better: its direction.
      kind: a key of KINDS; None is any that has what it asks for.
      compute: gives the number of what its parameters name; of `prepare`'s rows, if there is that.
      prepare: gives an array [N, ...] of what its parameters name, once for all samples.
      is_mean: whether `compute` gives a value for each record [N], whose mean is the metric.
    """

    name: str
    higher_is_better: bool
    kind: str | None
    compute: Callable[..., Any]
    prepare: Callable[..., np.ndarray] | None
    is_mean: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it asks for; a parameter with a default may be missing."""
        return _parameters(self.prepare or self.compute)


METRICS: Variants[Metric] = _METRICS


def metric(
    name: str,
    *,
    higher_is_better: bool,
    kind: str | None = None,
    prepare: Callable[..., np.ndarray] | None = None,
    is_mean: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that registers a function as a metric; see Metric for what it may be.

    Raises:
      ConfigError: there is one of that name for that kind of predictions.
    """
    assert kind is None or kind in KINDS, kind

    def add(compute: Callable[..., Any]) -> Callable[..., Any]:
        key = f"{kind}.{name}" if kind else name
        METRICS.register(key, module=compute.__module__)(
            Metric(name, higher_is_better, kind, compute, prepare, is_mean)
        )
        return compute

    return add


def find(kind: str, name: str) -> Metric | None:
    """The metric of that name for a kind of predictions; None if there is none, or it asks for what these do not have."""
    for key in (f"{kind}.{name}", name):
        if key in METRICS and set(METRICS[key].inputs) <= set(KINDS[kind]):
            return METRICS[key]
    return None


def names_for(kind: str, inputs: Iterable[str]) -> list[str]:
    """Names of all metrics of predictions of a kind that ask for these inputs, or fewer."""
    own = [one for _, one in METRICS.items() if one.kind in (kind, None) and set(one.inputs) <= set(inputs)]
    return sorted({one.name for one in own})


def higher_is_better(name: str) -> bool:
    """The direction of a metric, which is the same for all kinds of predictions; of a loss or perplexity, lower is better."""
    found = {one.higher_is_better for key, one in METRICS.items() if one.name == name}
    assert len(found) == 1, f"{name}: {'no such metric' if not found else 'two directions'}"
    return found.pop()


class Scored:
    """Predictions of a kind, with all that metrics of such ask for.

    Args:
      kind: a key of KINDS.
      given: what there is, by the names of KINDS.
    """

    def __init__(self, kind: str, **given: Any) -> None:
        assert set(given) <= set(KINDS[kind]), (kind, set(given))
        self.kind, self.given = kind, given
        self._prepared: dict[Callable[..., np.ndarray], np.ndarray] = {}

    def names(self) -> list[str]:
        """All metrics that can be computed."""
        return names_for(self.kind, self.given)

    def metric(self, name: str) -> Metric:
        """By name."""
        found = find(self.kind, name)
        assert found is not None, f"{self.kind}: {name}"
        return found

    def score(self, names: Iterable[str], index_I: np.ndarray | None = None) -> dict[str, float]:
        """Metrics of all records, or of a sample, by number; records may occur several times."""
        return {name: self._compute(self.metric(name), index_I) for name in names}

    def values(self, name: str) -> np.ndarray | None:
        """Of a metric that is a mean over records, its value of each [N]."""
        one = self.metric(name)
        return np.asarray(self._call(one, None), float) if one.is_mean else None

    def _compute(self, one: Metric, index_I: np.ndarray | None) -> float:
        found = self._call(one, index_I)
        return float(np.mean(found)) if one.is_mean else float(found)

    def _call(self, one: Metric, index_I: np.ndarray | None) -> Any:
        if one.prepare is None:
            given = self._arguments(one.compute)
            if index_I is not None:
                given = {name: x if name in _OPTIONS else take(x, index_I) for name, x in given.items()}
            return one.compute(**given)
        if one.prepare not in self._prepared:
            self._prepared[one.prepare] = np.asarray(one.prepare(**self._arguments(one.prepare)))
        rows = self._prepared[one.prepare]
        return one.compute(rows if index_I is None else rows[index_I])

    def _arguments(self, function: Callable[..., Any]) -> Mapping[str, Any]:
        return {name: self.given[name] for name in _parameters(function) if name in self.given}


def take(values: Any, index_I: np.ndarray) -> Any:
    """Some records of values by record."""
    return values[index_I] if isinstance(values, np.ndarray) else [values[i] for i in index_I]


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)

"""Registering metrics, and computing them over all examples or over a sample of them.

Legend: N examples, I examples of a sample, C classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lm_research.config.registries import METRICS as _METRICS
from lm_research.config.variants import Variants

# Kind of predictions -> the parameters that its metrics may have. All are per example [N, ...] except those in _OPTIONS.
KINDS: dict[str, tuple[str, ...]] = {
    # Class indices [N]. Optional: groups (equal indices for examples that belong together) and credits (relevance of an example).
    "single_label": ("predictions", "references", "logits", "groups", "credits", "num_labels"),
    "multi_label": ("predictions", "references"),  # the labels of an example, bool [N, C]
    "values": ("predictions", "references"),  # [N], or several values [N, C]
    "tags": ("predictions", "references"),  # lists of tags, one per word
    "choices": ("predictions", "references", "logits"),  # indices of choices
    # Texts, and lists of correct answers. For data with unanswerable questions (null): the best answer, and the score of no answer minus
    # that of the best answer.
    "answers": ("predictions", "references", "best_answers", "margins", "null"),
    "texts": ("predictions", "references", "bleu_tokenizer", "rouge_tokenizer"),
    "ranks": ("ranks",),  # of each correct text, from 1
    "likelihoods": ("nats", "tokens", "words", "bytes"),  # nats: log-likelihood; the others are counts
    # Any predictions, and scores per example that the task computes itself.
    "records": ("predictions", "references", "exact_match", "f1"),
    "minimal_pairs": ("good_nats", "bad_nats", "good_tokens", "bad_tokens"),
    "stereotypes": ("stereotype", "anti_stereotype", "unrelated", "terms"),  # scores of sentences [N], and target terms
}
_OPTIONS = ("num_labels", "null", "bleu_tokenizer", "rouge_tokenizer")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: its name in task.metric, results and suites.
      higher_is_better: its direction.
      kind: a key of KINDS; None for any kind that has its inputs.
      compute: computes the metric from the inputs that its parameters name, or from the array of `prepare` if there is one.
      prepare: computes an array [N, ...] from the inputs that its parameters name, once for all samples.
      is_mean: whether `compute` returns a value for each example [N], whose mean is the metric.
    """

    name: str
    higher_is_better: bool
    kind: str | None
    compute: Callable[..., Any]
    prepare: Callable[..., np.ndarray] | None
    is_mean: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs; one whose parameter has a default is optional."""
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
    """Return a decorator that registers a function as a metric; see Metric for the arguments.

    Raises:
      ConfigError: a metric with that name is already registered for that kind.
    """
    assert kind is None or kind in KINDS, kind

    def add(compute: Callable[..., Any]) -> Callable[..., Any]:
        key = f"{kind}.{name}" if kind else name
        METRICS.register(key, module=compute.__module__)(
            Metric(name, higher_is_better, kind, compute, prepare, is_mean)
        )
        return compute

    return add


def find_metric(kind: str, name: str) -> Metric | None:
    """Return the metric with that name for a kind of predictions; None if there is none whose inputs the kind has."""
    for key in (f"{kind}.{name}", name):
        if key in METRICS and set(METRICS[key].inputs) <= set(KINDS[kind]):
            return METRICS[key]
    return None


def metric_names(kind: str, inputs: Iterable[str]) -> list[str]:
    """Return the names of all metrics for a kind of predictions that need only these inputs."""
    candidates = [one for _, one in METRICS.items() if one.kind in (kind, None)]
    return sorted({one.name for one in candidates if set(one.inputs) <= set(inputs)})


def higher_is_better(name: str) -> bool:
    """Return the direction of a metric, which is the same for all kinds of predictions."""
    directions = {one.higher_is_better for _, one in METRICS.items() if one.name == name}
    assert len(directions) == 1, f"{name}: {'no such metric' if not directions else 'two directions'}"
    return directions.pop()


class MetricInputs:
    """Predictions of one kind with the other inputs of its metrics.

    Args:
      kind: a key of KINDS.
      columns: the available inputs, by their names in KINDS.
    """

    def __init__(self, kind: str, **columns: Any) -> None:
        assert set(columns) <= set(KINDS[kind]), (kind, set(columns))
        self.kind, self.columns = kind, columns
        self._prepared: dict[Callable[..., np.ndarray], np.ndarray] = {}

    def names(self) -> list[str]:
        """Names of all metrics that can be computed."""
        return metric_names(self.kind, self.columns)

    def metric(self, name: str) -> Metric:
        """Return the metric with this name for the kind of the predictions."""
        found = find_metric(self.kind, name)
        assert found is not None, f"{self.kind}: {name}"
        return found

    def score(self, names: Iterable[str], index_I: np.ndarray | None = None) -> dict[str, float]:
        """Compute metrics over all examples, or over a sample given by indices, which may repeat."""
        return {name: self._compute(self.metric(name), index_I) for name in names}

    def values(self, name: str) -> np.ndarray | None:
        """Return the value of each example [N] for a metric that is a mean over examples, else None."""
        one = self.metric(name)
        return np.asarray(self._call(one, None), float) if one.is_mean else None

    def _compute(self, one: Metric, index_I: np.ndarray | None) -> float:
        result = self._call(one, index_I)
        return float(np.mean(result)) if one.is_mean else float(result)

    def _call(self, one: Metric, index_I: np.ndarray | None) -> Any:
        if one.prepare is None:
            inputs = self._arguments(one.compute)
            if index_I is not None:
                inputs = {name: x if name in _OPTIONS else take_examples(x, index_I) for name, x in inputs.items()}
            return one.compute(**inputs)
        if one.prepare not in self._prepared:
            self._prepared[one.prepare] = np.asarray(one.prepare(**self._arguments(one.prepare)))
        rows = self._prepared[one.prepare]
        return one.compute(rows if index_I is None else rows[index_I])

    def _arguments(self, function: Callable[..., Any]) -> Mapping[str, Any]:
        return {name: self.columns[name] for name in _parameters(function) if name in self.columns}


def take_examples(values: Any, index_I: np.ndarray) -> Any:
    """Select examples, by index, of an array or a list with one item per example."""
    return values[index_I] if isinstance(values, np.ndarray) else [values[i] for i in index_I]


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)

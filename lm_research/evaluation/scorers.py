"""Metrics of the predictions in predictions.jsonl, over all examples or any sample of them.

Legend: N examples, I examples of a sample, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lm_research.errors import ConfigError, suggest
from lm_research.evaluation.suite import Entry
from lm_research.metrics import KINDS, MetricInputs, texts
from lm_research.metrics.single_label import best_in_groups
from lm_research.metrics.tags import mark_entities

Predictions = Sequence[Mapping[str, Any]]
_REFERENCES = ("label", "answer", "answers", "target")  # names of the reference in the predictions of different tasks


class Scorer:
    """Metrics of one model's predictions on one task.

    Attributes:
      rows: the predictions.
      labels: names of the classes in the model's order.
      num_records: number of predictions.
      default: the metric that papers report.
      names: the metrics.
      scored: predictions and references as arrays, from which the metrics are computed.
      group_N: index of each example's group, all of whose members are sampled together; None if examples are independent.
      error_N: size of each example's error; the page shows the largest first.
    """

    default: str
    names: tuple[str, ...]
    scored: MetricInputs
    error_N: np.ndarray
    group_N: np.ndarray | None = None

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        self.rows, self.labels, self.num_records = rows, labels, len(rows)

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        """Return all metrics of a sample, given as indices of examples; an example may occur several times."""
        return self.scored.score(self.names, index_I)

    def score_all(self) -> dict[str, float]:
        """Return all metrics over all examples."""
        return self.score(np.arange(self.num_records))

    @functools.cached_property
    def means(self) -> dict[str, np.ndarray]:
        """Values [N] of each example, for the metrics that are means over examples."""
        values = {name: self.scored.values(name) for name in self.names}
        return {name: value_N for name, value_N in values.items() if value_N is not None}

    def with_metrics(self, names: Iterable[str]) -> Scorer:
        """Add metrics and return self."""
        self.names = tuple(dict.fromkeys([*self.names, *names]))
        return self

    def concatenated(self, other: Scorer) -> Scorer:
        """Return a scorer of this scorer's examples followed by the other's."""
        return type(self)([*self.rows, *other.rows], self.labels).with_metrics(self.names)


class SingleLabelScorer(Scorer):
    """Scores single-label classification, from logits."""

    default = "accuracy"
    names = ("accuracy", "precision", "recall", "f1", "f1_macro", "f1_micro", "matthews", "calibration_error")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        index = {name: i for i, name in enumerate(labels)}
        logits_NC = np.array([row["logits"] for row in rows], np.float32)
        labels_N = np.array([index[row["label"]] for row in rows])
        self.scored = MetricInputs(
            "single_label",
            predictions=logits_NC.argmax(1),
            references=labels_N,
            logits=logits_NC,
            num_labels=logits_NC.shape[1],
        )
        probs_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
        self.probs_NC = probs_NC / probs_NC.sum(1, keepdims=True)
        self.error_N = 1.0 - self.probs_NC[np.arange(len(rows)), labels_N]


class GroupedLabelScorer(SingleLabelScorer):
    """Scores single-label classification of grouped examples, such as the answers to one question (MultiRC, ReCoRD).

    A sample must contain all examples of a group equally often.

    Legend: G groups.
    """

    group_N: np.ndarray

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        given = self.scored.columns
        self.group_N = np.unique([row["together"] for row in rows], return_inverse=True)[1]
        self.size_G = np.bincount(self.group_N)
        wrong_G = np.bincount(self.group_N, given["predictions"] != given["references"])
        self.group_metrics = {"group_accuracy": (wrong_G == 0).astype(float)}
        if "credit" in rows[0]:
            best_G = best_in_groups(given["logits"], self.group_N)
            credits_N = np.array([row["credit"] for row in rows], float)
            self.group_metrics["choice_accuracy"] = (given["references"][best_G] == len(labels) - 1).astype(float)
            self.group_metrics["choice_credit"] = credits_N[best_G]

    @override
    def score(self, index_I: np.ndarray) -> dict[str, float]:
        weight_G = np.bincount(self.group_N[index_I], minlength=len(self.size_G)) / self.size_G
        groups = {name: float(weight_G @ values_G / weight_G.sum()) for name, values_G in self.group_metrics.items()}
        return super().score(index_I) | groups

    @override
    def concatenated(self, other: Scorer) -> Scorer:
        again = [{**row, "together": f"{row['together']}, again"} for row in other.rows]
        return type(self)([*self.rows, *again], self.labels).with_metrics(self.names)


class MultiLabelScorer(Scorer):
    """Scores multi-label classification."""

    default = "f1_micro"
    names = ("exact_match", "precision", "recall", "f1_micro", "f1_macro")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        predictions_NC, labels_NC = (
            np.array([[name in row[key] for name in labels] for row in rows]) for key in ("prediction", "label")
        )
        self.scored = MetricInputs("multi_label", predictions=predictions_NC, references=labels_NC)
        self.error_N = (predictions_NC != labels_NC).sum(1).astype(float)


class RegressionScorer(Scorer):
    """Scores regression to one or several values."""

    default = "spearman"
    names = ("pearson", "spearman", "squared_error")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        values_N, labels_N = (np.array([row[key] for row in rows], float) for key in ("prediction", "label"))
        self.scored = MetricInputs("values", predictions=values_N, references=labels_N)
        self.error_N = np.square(values_N - labels_N).reshape(len(rows), -1).mean(1)


class TagScorer(Scorer):
    """Scores tags of words."""

    names = ("accuracy", "precision", "recall", "f1")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.default = "f1" if mark_entities(labels) else "accuracy"
        predictions, references = ([row[key] for row in rows] for key in ("prediction", "label"))
        self.scored = MetricInputs("tags", predictions=predictions, references=references)
        pairs = zip(predictions, references, strict=True)
        self.error_N = np.array([sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs], float)


class MinimalPairScorer(Scorer):
    """Scores minimal pairs: the fraction of pairs whose acceptable sentence has the higher probability."""

    default = "accuracy"
    names = ("accuracy", "accuracy_per_token")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        fields = ("good_nats", "bad_nats", "good_tokens", "bad_tokens")
        given = {name: np.array([row[name] for row in rows], float) for name in fields}
        self.scored = MetricInputs("minimal_pairs", **given)
        self.error_N = given["bad_nats"] - given["good_nats"]


class LanguageModelScorer(Scorer):
    """Scores log-likelihoods of texts."""

    default = "bits_per_byte"
    names = ("bits_per_byte", "perplexity", "word_perplexity")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        given = {name: np.array([row[name] for row in rows], float) for name in KINDS["likelihoods"]}
        self.scored = MetricInputs("likelihoods", **given)
        self.error_N = -given["nats"] / given["bytes"]


class RetrievalScorer(Scorer):
    """Scores retrieval, from the rank of each matching text among all texts."""

    default = "mrr_at_10"
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        ranks_N = np.array([row["rank"] for row in rows])
        self.scored, self.error_N = MetricInputs("ranks", ranks=ranks_N), ranks_N.astype(float)


class GenerationScorer(Scorer):
    """Scores generated texts; `options` are those of metrics.KINDS["texts"]."""

    default = "bleu"
    names = texts.NAMES

    def __init__(self, rows: Predictions, labels: Sequence[str], **options: str) -> None:
        super().__init__(rows, labels)
        predictions, targets = ([row[key] for row in rows] for key in ("prediction", "target"))
        self.options = options
        self.scored = MetricInputs("texts", predictions=predictions, references=targets, **options)
        self.error_N = 1.0 - np.asarray(self.scored.values("rougel"))

    @override
    def concatenated(self, other: Scorer) -> Scorer:
        return type(self)([*self.rows, *other.rows], self.labels, **self.options).with_metrics(self.names)


class RecordScorer(Scorer):
    """Scores means over examples: exact_match and f1 if the predictions have them, otherwise accuracy."""

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.names = tuple(name for name in ("exact_match", "f1") if name in rows[0]) or ("accuracy",)
        self.default = self.names[-1]
        keys = {"predictions": "prediction", **{name: name for name in self.names if name != "accuracy"}}
        keys["references"] = next((name for name in _REFERENCES if name in rows[0]), "")
        columns = {name: [row[key] for row in rows] for name, key in keys.items() if key in rows[0]}
        self.scored = MetricInputs("records", **columns)
        value_N = np.asarray(self.scored.values(self.default))
        probability_N = np.array([row.get("probability", 0.0) for row in rows])
        self.error_N = 1.0 - value_N + 0.5 * probability_N * (value_N < 0.5)  # among errors, the confident ones first


def make_scorer(entry: Entry, labels: Sequence[str], rows: Predictions) -> Scorer:
    """Return the scorer of a task of a suite, with the registered metric that the suite names, if any."""
    kinds = {
        "single_label": SingleLabelScorer,
        "multi_label": MultiLabelScorer,
        "regression": RegressionScorer,
        "contrastive": RetrievalScorer,
        "tagging": TagScorer,
        "minimal_pairs": MinimalPairScorer,
        "language_modeling": LanguageModelScorer,
    }
    scorer: Scorer
    if entry.task == "classification" and entry.problem_type == "single_label" and entry.more.get("group_key"):
        scorer = GroupedLabelScorer(rows, labels)
    elif entry.task == "seq2seq":
        options = {name: entry.more[name] for name in ("bleu_tokenizer", "rouge_tokenizer") if name in entry.more}
        scorer = GenerationScorer(rows, (), **options)
    else:
        scorer = kinds.get(entry.problem_type or entry.task, RecordScorer)(rows, labels)
    return scorer.with_metrics([entry.metric]) if entry.metric in scorer.scored.names() else scorer


def main_metric(entry: Entry, scorer: Scorer) -> str:
    """Return the metric that is reported first; raise a ConfigError if the suite names one that does not exist."""
    metric, valid = entry.metric or scorer.default, scorer.score_all()
    if metric not in valid:
        raise ConfigError(f"Task {entry.name}: there is no metric {metric!r}. {suggest(metric, valid)}")
    return metric

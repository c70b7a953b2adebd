"""From predictions, as they lie in predictions.jsonl, to metrics: of all records, or of any sample of them.

Legend: N records, I records of a sample, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import ConfigError, suggest
from lm_research.evaluation.suite import Entry
from lm_research.metrics import KINDS, Scored, texts
from lm_research.metrics.single_label import choose
from lm_research.metrics.tags import mark_entities

Predictions = Sequence[Mapping[str, Any]]
_REFERENCES = ("label", "answer", "answers", "target")  # what was right, as predictions of the tasks name it


class Scorer:
    """Metrics of one model's predictions on one task.

    Attributes:
      rows, labels: what it was made from: predictions, and names of classes in the model's order.
      default: the metric that papers report.
      names: the metrics.
      scored: what they are computed of.
      together_N: numbers that are equal where records belong together, so that samples have all of them or none; None: nowhere.
      error_N: how wrong each record is; the worst are shown first.
    """

    default: str
    names: tuple[str, ...]
    scored: Scored
    error_N: np.ndarray
    together_N: np.ndarray | None = None

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        self.rows, self.labels, self.num_records = rows, labels, len(rows)

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        """All metrics of a sample of records, by number; records may occur several times."""
        return self.scored.score(self.names, index_I)

    def all(self) -> dict[str, float]:
        return self.score(np.arange(self.num_records))

    @functools.cached_property
    def means(self) -> dict[str, np.ndarray]:
        """Metrics that are means over records, with a value of each record [N]."""
        values = {name: self.scored.values(name) for name in self.names}
        return {name: value_N for name, value_N in values.items() if value_N is not None}

    def with_metrics(self, names: Iterable[str]) -> Scorer:
        """The same, which has these metrics too."""
        self.names = tuple(dict.fromkeys([*self.names, *names]))
        return self

    def joined(self, other: Scorer) -> Scorer:
        """Of this one's records followed by the other's."""
        return type(self)([*self.rows, *other.rows], self.labels).with_metrics(self.names)


class SingleLabelScorer(Scorer):
    """One label of several, by logits."""

    default = "accuracy"
    names = ("accuracy", "precision", "recall", "f1", "f1_macro", "f1_micro", "matthews", "calibration_error")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        number = {name: i for i, name in enumerate(labels)}
        logits_NC = np.array([row["logits"] for row in rows], np.float32)
        labels_N = np.array([number[row["label"]] for row in rows])
        self.scored = Scored(
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
    """One label of several, of records that belong together and are judged together: answers to one question (MultiRC, ReCoRD).

    Samples must have all records of a group, as often as each other.

    Legend: G groups.
    """

    together_N: np.ndarray

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        given = self.scored.given
        self.together_N = np.unique([row["together"] for row in rows], return_inverse=True)[1]
        self.size_G = np.bincount(self.together_N)
        wrong_G = np.bincount(self.together_N, given["predictions"] != given["references"])
        self.of_groups = {"group_accuracy": (wrong_G == 0).astype(float)}
        if "credit" in rows[0]:
            best_G = choose(given["logits"], self.together_N)
            credits_N = np.array([row["credit"] for row in rows], float)
            self.of_groups["choice_accuracy"] = (given["references"][best_G] == len(labels) - 1).astype(float)
            self.of_groups["choice_credit"] = credits_N[best_G]

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        weight_G = np.bincount(self.together_N[index_I], minlength=len(self.size_G)) / self.size_G
        groups = {name: float(weight_G @ values_G / weight_G.sum()) for name, values_G in self.of_groups.items()}
        return super().score(index_I) | groups

    def joined(self, other: Scorer) -> Scorer:
        again = [{**row, "together": f"{row['together']}, again"} for row in other.rows]
        return type(self)([*self.rows, *again], self.labels).with_metrics(self.names)


class MultiLabelScorer(Scorer):
    """Any number of labels."""

    default = "f1_micro"
    names = ("exact_match", "precision", "recall", "f1_micro", "f1_macro")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        chosen_NC, labels_NC = (
            np.array([[name in row[key] for name in labels] for row in rows]) for key in ("prediction", "label")
        )
        self.scored = Scored("multi_label", predictions=chosen_NC, references=labels_NC)
        self.error_N = (chosen_NC != labels_NC).sum(1).astype(float)


class RegressionScorer(Scorer):
    """A number, or several."""

    default = "spearman"
    names = ("pearson", "spearman", "squared_error")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        values_N, labels_N = (np.array([row[key] for row in rows], float) for key in ("prediction", "label"))
        self.scored = Scored("values", predictions=values_N, references=labels_N)
        self.error_N = np.square(values_N - labels_N).reshape(len(rows), -1).mean(1)


class TagScorer(Scorer):
    """A tag for each word."""

    names = ("accuracy", "precision", "recall", "f1")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.default = "f1" if mark_entities(labels) else "accuracy"
        own, true = ([row[key] for row in rows] for key in ("prediction", "label"))
        self.scored = Scored("tags", predictions=own, references=true)
        self.error_N = np.array(
            [sum(a != b for a, b in zip(*pair, strict=True)) for pair in zip(own, true, strict=True)], float
        )


class MinimalPairScorer(Scorer):
    """Minimal pairs: whether the acceptable sentence is the likelier one."""

    default = "accuracy"
    names = ("accuracy", "accuracy_per_token")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        fields = ("good_nats", "bad_nats", "good_tokens", "bad_tokens")
        given = {name: np.array([row[name] for row in rows], float) for name in fields}
        self.scored = Scored("minimal_pairs", **given)
        self.error_N = given["bad_nats"] - given["good_nats"]


class LanguageModelScorer(Scorer):
    """How likely texts are."""

    default = "bits_per_byte"
    names = ("bits_per_byte", "perplexity", "word_perplexity")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        given = {name: np.array([row[name] for row in rows], float) for name in KINDS["likelihoods"]}
        self.scored = Scored("likelihoods", **given)
        self.error_N = -given["nats"] / given["bytes"]


class RetrievalScorer(Scorer):
    """Pairs that belong together: the rank of each right text among all."""

    default = "mrr_at_10"
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10")

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        ranks_N = np.array([row["rank"] for row in rows])
        self.scored, self.error_N = Scored("ranks", ranks=ranks_N), ranks_N.astype(float)


class GenerationScorer(Scorer):
    """Texts written for sources; `options` are those of metrics.KINDS["texts"]."""

    default = "bleu"
    names = texts.NAMES

    def __init__(self, rows: Predictions, labels: Sequence[str], **options: str) -> None:
        super().__init__(rows, labels)
        predictions, targets = ([row[key] for row in rows] for key in ("prediction", "target"))
        self.options = options
        self.scored = Scored("texts", predictions=predictions, references=targets, **options)
        self.error_N = 1.0 - np.asarray(self.scored.values("rougel"))

    def joined(self, other: Scorer) -> Scorer:
        return type(self)([*self.rows, *other.rows], self.labels, **self.options).with_metrics(self.names)


class RecordScorer(Scorer):
    """Metrics that are means over records: exact_match and f1 where predictions hold them, else whether they are the label."""

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.names = tuple(name for name in ("exact_match", "f1") if name in rows[0]) or ("accuracy",)
        self.default = self.names[-1]
        given = {"predictions": "prediction", **{name: name for name in self.names if name != "accuracy"}}
        given["references"] = next((name for name in _REFERENCES if name in rows[0]), "")
        columns = {name: [row[key] for row in rows] for name, key in given.items() if key in rows[0]}
        self.scored = Scored("records", **columns)
        value_N = np.asarray(self.scored.values(self.default))
        sure_N = np.array([row.get("probability", 0.0) for row in rows])
        self.error_N = 1.0 - value_N + 0.5 * sure_N * (value_N < 0.5)


def make_scorer(entry: Entry, labels: Sequence[str], rows: Predictions) -> Scorer:
    """The scorer of a task of a suite; a metric of the user's own that the suite names is among its metrics."""
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
    own = scorer.scored.names()
    return scorer.with_metrics([entry.metric]) if entry.metric in own else scorer


def main_metric(entry: Entry, scorer: Scorer) -> str:
    """The metric that is reported first; raises a ConfigError if the suite names one that there is not."""
    metric, valid = entry.metric or scorer.default, scorer.all()
    if metric not in valid:
        raise ConfigError(f"Task {entry.name}: there is no metric {metric!r}. {suggest(metric, valid)}")
    return metric

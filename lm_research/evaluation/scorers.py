"""From predictions, as they lie in predictions.jsonl, to metrics: of all records, or of any sample of them.

Legend: N records, I records of a sample, C classes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.config import TaskConfig
from lm_research.errors import ConfigError, suggest
from lm_research.evaluation.suite import Entry
from lm_research.tasks import metrics, text_metrics

_TOKENIZERS = {name: getattr(TaskConfig(), name) for name in ("bleu_tokenizer", "rouge_tokenizer")}
Predictions = Sequence[Mapping[str, Any]]


class Scorer(abc.ABC):
    """Metrics of one model's predictions on one task.

    Attributes:
      rows, labels: what it was made from: predictions, and names of classes in the model's order.
      usual: the metric that papers report.
      means: metrics that are means over records, with a value of each record [N].
      together_N: numbers that are equal where records belong together, so that samples have all of them or none; None: nowhere.
      badness_N: how wrong each record is; the worst are shown first.
    """

    usual: str
    means: dict[str, np.ndarray]
    badness_N: np.ndarray
    together_N: np.ndarray | None = None

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        self.rows, self.labels, self.num_records = rows, labels, len(rows)

    @abc.abstractmethod
    def score(self, index_I: np.ndarray) -> dict[str, float]:
        """All metrics of a sample of records, by number; records may occur several times."""

    def all(self) -> dict[str, float]:
        return self.score(np.arange(self.num_records))

    def joined(self, other: Scorer) -> Scorer:
        """Of this one's records followed by the other's."""
        return type(self)([*self.rows, *other.rows], self.labels)


class OneLabel(Scorer):
    """One label of several, by logits."""

    usual = "accuracy"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        number = {name: i for i, name in enumerate(labels)}
        self.logits_NC = np.array([row["logits"] for row in rows], np.float32)
        self.labels_N = np.array([number[row["label"]] for row in rows])
        self.chosen_N = self.logits_NC.argmax(1)
        self.gaps = metrics.calibration_gaps(self.logits_NC, self.labels_N)
        self.means = {"accuracy": (self.chosen_N == self.labels_N).astype(float)}
        shares_NC = np.exp(self.logits_NC - self.logits_NC.max(1, keepdims=True))
        shares_NC /= shares_NC.sum(1, keepdims=True)
        self.shares_NC = shares_NC
        self.badness_N = 1.0 - shares_NC[np.arange(len(rows)), self.labels_N]

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        counts_CC = metrics.confusion(self.labels_N[index_I], self.chosen_N[index_I], self.logits_NC.shape[1])
        gaps = metrics.of_gaps(self.gaps[0][index_I], self.gaps[1][index_I])
        return metrics.of_confusion(counts_CC) | {"calibration_error": gaps}


class LabelsTogether(OneLabel):
    """One label of several, of records that belong together and are judged together: answers to one question (MultiRC, ReCoRD).

    Samples must have all records of a group, as often as each other.

    Legend: G groups.
    """

    together_N: np.ndarray

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.together_N = np.unique([row["together"] for row in rows], return_inverse=True)[1]
        self.size_G = np.bincount(self.together_N)
        wrong_G = np.bincount(self.together_N, self.chosen_N != self.labels_N)
        self.of_groups = {"group_accuracy": (wrong_G == 0).astype(float)}
        if "credit" in rows[0]:
            best_G = metrics.chosen(self.logits_NC, self.together_N)
            credits_N = np.array([row["credit"] for row in rows], float)
            self.of_groups["choice_accuracy"] = (self.labels_N[best_G] == len(labels) - 1).astype(float)
            self.of_groups["choice_credit"] = credits_N[best_G]

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        weight_G = np.bincount(self.together_N[index_I], minlength=len(self.size_G)) / self.size_G
        groups = {name: float(weight_G @ values_G / weight_G.sum()) for name, values_G in self.of_groups.items()}
        return super().score(index_I) | groups

    def joined(self, other: Scorer) -> Scorer:
        return type(self)(
            [*self.rows, *({**row, "together": f"{row['together']}, again"} for row in other.rows)], self.labels
        )


class SeveralLabels(Scorer):
    """Any number of labels."""

    usual = "f1_micro"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.chosen_NC, self.labels_NC = (
            np.array([[name in row[key] for name in labels] for row in rows]) for key in ("prediction", "label")
        )
        wrong_N = (self.chosen_NC != self.labels_NC).sum(1)
        self.means, self.badness_N = {"exact_match": (wrong_N == 0).astype(float)}, wrong_N.astype(float)

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return metrics.multi_label(self.chosen_NC[index_I], self.labels_NC[index_I])


class Value(Scorer):
    """A number, or several."""

    usual = "spearman"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.values_N, self.labels_N = (np.array([row[key] for row in rows], float) for key in ("prediction", "label"))
        self.badness_N = np.square(self.values_N - self.labels_N).reshape(len(rows), -1).mean(1)
        self.means = {"squared_error": self.badness_N}

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return metrics.regression(self.values_N[index_I], self.labels_N[index_I])


class Tags(Scorer):
    """A tag for each word. Counts of each sentence add up to those of any sample, so entities are looked for once."""

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.usual = "f1" if metrics.mark_entities(labels) else "accuracy"
        self.counts_N5 = np.stack([metrics.tag_counts(row["prediction"], row["label"]) for row in rows])
        self.badness_N = (self.counts_N5[:, 1] - self.counts_N5[:, 0]).astype(float)
        self.means = {}

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return metrics.of_tag_counts(self.counts_N5[index_I].sum(0))


class Pairs(Scorer):
    """Minimal pairs: whether the acceptable sentence is the likelier one."""

    usual = "accuracy"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.margins_N = np.array([row["good_nats"] - row["bad_nats"] for row in rows], float)
        per_token_N = np.array(
            [row["good_nats"] / row["good_tokens"] - row["bad_nats"] / row["bad_tokens"] for row in rows]
        )
        self.badness_N = -self.margins_N
        self.means = {
            "accuracy": (self.margins_N > 0).astype(float),
            "accuracy_per_token": (per_token_N > 0).astype(float),
        }

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return {name: float(values[index_I].mean()) for name, values in self.means.items()}


class Texts(Scorer):
    """How likely texts are: what is asked of a sample is of all its tokens, words or bytes together."""

    usual = "bits_per_byte"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.sums_N4 = np.array([[row[name] for name in ("nats", "tokens", "words", "bytes")] for row in rows], float)
        self.means, self.badness_N = {}, -self.sums_N4[:, 0] / self.sums_N4[:, 3]

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        nats, tokens, words, size = self.sums_N4[index_I].sum(0)
        return {
            "bits_per_byte": float(-nats / np.log(2) / size),
            "perplexity": float(np.exp(-nats / tokens)),
            "word_perplexity": float(np.exp(min(700.0, -nats / words))),
        }


class Ranks(Scorer):
    """Pairs that belong together: the rank of each right text among all."""

    usual = "mrr_at_10"

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        self.ranks_N = np.array([row["rank"] for row in rows])
        each = [metrics.retrieval(self.ranks_N[number : number + 1]) for number in range(len(rows))]
        self.means = {name: np.array([one[name] for one in each]) for name in each[0]}
        self.badness_N = self.ranks_N.astype(float)

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return metrics.retrieval(self.ranks_N[index_I])


class Written(Scorer):
    """Texts written for sources. BLEU and chrF of a sample are of the sums of its records' counts, so texts are compared once."""

    usual = "bleu"

    def __init__(self, rows: Predictions, tokenizer: str, rouge_tokenizer: str = "auto") -> None:
        super().__init__(rows, ())
        predictions, targets = ([row[key] for row in rows] for key in ("prediction", "target"))
        self.counted = {"bleu": text_metrics.bleu(tokenizer), "chrf": text_metrics.chrf()}
        self.counts = {
            name: np.array(metric._extract_corpus_statistics(predictions, [targets]))
            for name, metric in self.counted.items()
        }
        by_record = text_metrics.rouge(predictions, targets, rouge_tokenizer)
        self.means = {name: np.array([one[name] for one in by_record]) for name in by_record[0]}
        self.means["exact_match"] = np.array([row["exact_match"] for row in rows], float)
        self.badness_N = 1.0 - self.means["rougel"]

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        sums = {name: counts[index_I].sum(0).tolist() for name, counts in self.counts.items()}
        found = {name: metric._compute_score_from_stats(sums[name]).score for name, metric in self.counted.items()}
        return found | {name: float(values[index_I].mean()) for name, values in self.means.items()}


class ByRecord(Scorer):
    """Metrics that are means over records: exact_match and f1 where predictions hold them, else whether they are the label."""

    def __init__(self, rows: Predictions, labels: Sequence[str]) -> None:
        super().__init__(rows, labels)
        names = [name for name in ("exact_match", "f1") if name in rows[0]]
        self.means = {name: np.array([row[name] for row in rows], float) for name in names}
        if not names:
            self.means["accuracy"] = np.array([row["prediction"] == row["label"] for row in rows], float)
        self.usual = list(self.means)[-1]
        sure_N = np.array([row.get("probability", 0.0) for row in rows])
        self.badness_N = 1.0 - self.means[self.usual] + 0.5 * sure_N * (self.means[self.usual] < 0.5)

    def score(self, index_I: np.ndarray) -> dict[str, float]:
        return {name: float(values[index_I].mean()) for name, values in self.means.items()}


def make_scorer(entry: Entry, labels: Sequence[str], rows: Predictions) -> Scorer:
    """The scorer of a task of a suite."""
    kinds: dict[str, Callable[[Predictions, Sequence[str]], Scorer]] = {
        "classification": {"label": OneLabel, "labels": SeveralLabels, "value": Value}[entry.target],
        "tagging": Tags,
        "embedding": Value if entry.target == "value" else Ranks,
        "minimal_pairs": Pairs,
        "language_modelling": Texts,
    }
    if entry.task == "classification" and entry.target == "label" and entry.more.get("together_key"):
        return LabelsTogether(rows, labels)
    if entry.task == "seq2seq":
        bleu, rouge = (entry.more.get(name, usual) for name, usual in _TOKENIZERS.items())
        return Written(rows, bleu, rouge)
    return kinds.get(entry.task, ByRecord)(rows, labels)


def main_metric(entry: Entry, scorer: Scorer) -> str:
    """The metric that is reported first; raises a ConfigError if the suite names one that there is not."""
    metric, valid = entry.metric or scorer.usual, scorer.all()
    if metric not in valid:
        raise ConfigError(f"Task {entry.name}: there is no metric {metric!r}. {suggest(metric, valid)}")
    return metric


def lower_is_better(metric: str) -> bool:
    return metric.endswith(("_error", "perplexity", "bits_per_byte"))

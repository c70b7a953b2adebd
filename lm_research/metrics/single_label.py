"""Single-label classification; the metrics agree with scikit-learn's.

Legend: N examples, C classes, G groups.
"""

from __future__ import annotations

import numpy as np

from lm_research.metrics.base import metric

_BINS = 15  # of the calibration error


@metric("accuracy", higher_is_better=True, kind="single_label", is_mean=True)
@metric("accuracy", higher_is_better=True, kind="choices", is_mean=True)
def accuracy(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Whether each prediction is correct."""
    return predictions == references


class _Confusion:
    """The confusion matrix [C, C] (rows: true classes, columns: predicted) and metrics derived from it; 0 where undefined.

    This is NumPy, because resampling computes it thousands of times; the tests compare with scikit-learn.
    """

    def __init__(self, predictions: np.ndarray, references: np.ndarray, num_labels: int) -> None:
        counts = np.bincount(references * num_labels + predictions, minlength=num_labels * num_labels)
        counts_CC = counts.reshape(num_labels, num_labels).astype(float)
        self.hits_C, self.true_C, self.chosen_C = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
        self.total = counts_CC.sum()

    def mean(self, of_class_C: np.ndarray) -> float:
        """Return the value of class 1 if there are two classes, else the mean over the classes that occur as labels."""
        means_C = np.array([False, True]) if len(of_class_C) == 2 else self.true_C > 0
        return of_class_C[means_C].mean()

    @property
    def f1_C(self) -> np.ndarray:
        return ratio(2 * self.hits_C, self.true_C + self.chosen_C)


@metric("precision", higher_is_better=True, kind="single_label")
def precision(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Precision of class 1 if there are two classes, else the mean over the classes that occur as labels."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(ratio(counts.hits_C, counts.chosen_C))


@metric("recall", higher_is_better=True, kind="single_label")
def recall(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Recall of class 1 if there are two classes, else the mean over the classes that occur as labels."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(ratio(counts.hits_C, counts.true_C))


@metric("f1", higher_is_better=True, kind="single_label")
def f1(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """F1 of class 1 if there are two classes, else the mean over the classes that occur as labels."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.mean(counts.f1_C)


@metric("f1_macro", higher_is_better=True, kind="single_label")
def f1_macro(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Mean F1 over the classes that occur as labels or predictions."""
    counts = _Confusion(predictions, references, num_labels)
    return counts.f1_C[counts.true_C + counts.chosen_C > 0].mean()


@metric("f1_micro", higher_is_better=True, kind="single_label", is_mean=True)
def f1_micro(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """F1 over all decisions, which for single labels equals the accuracy."""
    return predictions == references


@metric("matthews", higher_is_better=True, kind="single_label")
def matthews(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Matthews correlation coefficient (Matthews 1975; for several classes Gorodkin 2004)."""
    counts = _Confusion(predictions, references, num_labels)
    true_C, chosen_C, total = counts.true_C, counts.chosen_C, counts.total
    spread = (total**2 - true_C @ true_C) * (total**2 - chosen_C @ chosen_C)
    return (counts.hits_C.sum() * total - true_C @ chosen_C) / np.sqrt(spread) if spread > 0 else 0.0


def calibration_gaps(logits: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return [N, 2]: the confidence bin of each example, and its correctness (1 or 0) minus its confidence."""
    probs_NC = np.exp(logits - logits.max(-1, keepdims=True))
    confidence_N = (probs_NC / probs_NC.sum(-1, keepdims=True)).max(-1)
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    return np.stack([bin_N, (logits.argmax(-1) == references) - confidence_N], axis=1)


@metric("calibration_error", higher_is_better=False, kind="single_label", prepare=calibration_gaps)
@metric("calibration_error", higher_is_better=False, kind="choices", prepare=calibration_gaps)
def calibration_error(gaps_N2: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over 15 equal bins, weighted by their examples."""
    return np.abs(np.bincount(gaps_N2[:, 0].astype(int), gaps_N2[:, 1], minlength=_BINS)).sum() / len(gaps_N2)


@metric("group_accuracy", higher_is_better=True, kind="single_label")
def group_accuracy(predictions: np.ndarray, references: np.ndarray, groups: np.ndarray) -> float:
    """Fraction of groups whose examples are all correct."""
    wrong = np.unique(groups[predictions != references])
    return 1 - len(wrong) / len(np.unique(groups))


def best_in_groups(logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the index [G] of each group's example with the highest probability of the last class; ties go to the first."""
    gaps_NC = logits.astype(np.float64) - logits[:, -1:]  # exact for ties
    score_N = -np.logaddexp.reduce(gaps_NC, axis=1)
    order_N = np.lexsort((-score_N, groups))  # stable: by group, best first
    return order_N[np.unique(groups[order_N], return_index=True)[1]]


@metric("choice_accuracy", higher_is_better=True, kind="single_label")
def choice_accuracy(logits: np.ndarray, references: np.ndarray, groups: np.ndarray, credits: np.ndarray) -> float:
    """Fraction of groups whose example with the highest probability of the last class has that class."""
    return (references[best_in_groups(logits, groups)] == logits.shape[1] - 1).mean()


@metric("choice_credit", higher_is_better=True, kind="single_label")
def choice_credit(logits: np.ndarray, groups: np.ndarray, credits: np.ndarray) -> float:
    """Mean credit of each group's example with the highest probability of the last class."""
    return credits[best_in_groups(logits, groups)].mean()


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, 0 where whole is 0."""
    return part / np.where(whole > 0, whole, 1)

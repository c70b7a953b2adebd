"""Metrics against hand arithmetic, and against counting from their definitions on random inputs."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from lm_research.metrics import MetricInputs
from lm_research.metrics.ranks import first_ranks
from lm_research.metrics.tags import entities, mark_entities


def score(kind: str, **given: Any) -> dict[str, float]:
    """All metrics of predictions of a kind."""
    scored = MetricInputs(kind, **given)
    return scored.score(scored.names())


def classified(logits: np.ndarray, labels: np.ndarray, **given: Any) -> dict[str, float]:
    chosen, labels = np.asarray(logits).argmax(1), np.asarray(labels)
    return score(
        "single_label", predictions=chosen, references=labels, logits=logits, num_labels=logits.shape[1], **given
    )


def values(own: np.ndarray, true: np.ndarray) -> dict[str, float]:
    return score("values", predictions=own, references=true)


def test_two_classes_by_hand() -> None:
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    labels = np.array([1] * 3 + [0] + [1] * 2 + [0] * 4)
    chosen = np.array([1] * 4 + [0] * 6)

    found = classified(np.eye(2)[chosen], labels)

    assert found["accuracy"] == pytest.approx(7 / 10)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert found["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))  # Matthews 1975


@pytest.mark.parametrize("seed", range(5))
def test_many_classes_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 4, 60), rng.normal(size=(60, 4))
    chosen = logits.argmax(1)

    found = classified(logits, labels)

    f1 = [2 * ((chosen == c) & (labels == c)).sum() / ((chosen == c).sum() + (labels == c).sum()) for c in range(4)]
    assert found["f1_macro"] == pytest.approx(np.mean(f1))
    assert found["f1_micro"] == pytest.approx((chosen == labels).mean())


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_match_scikit_learn(classes: int, seed: int) -> None:
    """Small samples, in which classes are missing as labels, as guesses, or as both."""
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, classes, 6), rng.normal(size=(6, classes))
    chosen = logits.argmax(1)
    average = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": np.unique(labels)}
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, chosen, zero_division=0.0, **average
    )
    found = classified(logits, labels)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1))
    for average in ("micro", "macro"):
        value = sklearn.metrics.f1_score(labels, chosen, average=average, zero_division=0.0)
        assert found[f"f1_{average}"] == pytest.approx(value)
    assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, chosen))
    true, own = rng.random((2, 6, classes)) < 0.3
    found = score("multi_label", predictions=own, references=true)
    for average in ("micro", "macro"):
        value = sklearn.metrics.precision_recall_fscore_support(true, own, average=average, zero_division=0.0)
        assert found[f"f1_{average}"] == pytest.approx(value[2])
        if average == "micro":
            assert (found["precision"], found["recall"]) == pytest.approx(value[:2])


def test_calibration_error_by_hand() -> None:
    """Two records with confidence 0.9, one right, and two with 0.6, both right: (|1 - 1.8| + |2 - 1.2|) / 4."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert classified(logits, np.array([0, 1, 0, 0]))["calibration_error"] == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_matches_its_definition(seed: int) -> None:
    """Guo et al. 2017, equation 3: bins ((m - 1) / 15, m / 15], each with its own accuracy and mean confidence."""
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 4, 300), 2 * rng.normal(size=(300, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
    assert classified(logits, labels)["calibration_error"] == pytest.approx(expected)


def test_groups_by_hand() -> None:
    """One of the groups 7, 3 and 5 has a wrong record."""
    right, groups = np.array([1, 1, 0, 1, 1], bool), np.array([7, 3, 3, 7, 5])
    found = classified(np.eye(2)[right.astype(int)], np.ones(5, int), groups=groups)
    assert found["group_accuracy"] == pytest.approx(2 / 3)


def test_labels_by_hand() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0]], bool)
    chosen = np.array([[1, 0, 0], [0, 1, 1]], bool)
    found = score("multi_label", predictions=chosen, references=labels)
    assert found["exact_match"] == 0.0
    assert found["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["f1_macro"] == pytest.approx((1 + 1 + 0) / 3)


def test_values_by_hand() -> None:
    found = values(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(3 / np.sqrt(2 * 14 / 3))  # covariance 3, sums of squares 14 / 3 and 2
    assert found["squared_error"] == pytest.approx(1 / 3)
    assert values(np.ones(3), np.arange(3.0))["pearson"] == 0.0
    two = values(np.array([[1.0, 1], [2, 1], [4, 1]]), np.array([[1.0, 0], [2, 1], [3, 2]]))
    assert two["pearson"] == pytest.approx(found["pearson"] / 2)  # the mean of that and of 0
    assert two["squared_error"] == pytest.approx((1 + 1 + 0 + 1) / 6)


@pytest.mark.parametrize("seed", range(3))
def test_values_match_scipy(seed: int) -> None:
    """With ties among the labels."""
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(0, 5, 40).astype(np.float32), rng.normal(size=40).astype(np.float32)
    found = score("values", predictions=values, references=labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values.astype(float), labels.astype(float)).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic)


ENTITIES = {  # tags -> entities, as the conlleval script of CoNLL-2000 reads them
    "B-A I-A O B-B": {("A", 0, 2), ("B", 3, 4)},
    "B-A B-A": {("A", 0, 1), ("A", 1, 2)},
    "I-A I-B": {("A", 0, 1), ("B", 1, 2)},
    "O I-A I-A": {("A", 1, 3)},
    "S-A B-B E-B O": {("A", 0, 1), ("B", 1, 3)},
    "B-A I-A E-A I-A": {("A", 0, 3), ("A", 3, 4)},
    "U-A B-B I-B L-B": {("A", 0, 1), ("B", 1, 4)},
    "B I O I B E": {("_", 0, 2), ("_", 3, 4), ("_", 4, 6)},
    "B- I B-_": {("_", 0, 2), ("_", 2, 3)},
    "B-A-B I-A-B I-A": {("A-B", 0, 2), ("A", 2, 3)},
    "B M E S": {("_", 0, 3), ("_", 3, 4)},
    "O O": set(),
    "NN VB": set(),
}


@pytest.mark.parametrize("tags", ENTITIES)
def test_entities(tags: str) -> None:
    assert entities(tags.split()) == ENTITIES[tags]


@pytest.mark.parametrize(
    ("names", "marked"),
    [
        ("O B-A I-A", True),
        ("O B I", True),
        ("B I E S", True),
        ("O B-A MISC", True),
        ("NN VB -LRB- PRP", False),
        ("O", False),
        ("S V E B I", False),
    ],
)
def test_which_tags_mark_entities(names: str, marked: bool) -> None:
    """Parts of speech do not, though some are written with a hyphen or as single letters (the last: Italian ones)."""
    assert mark_entities(names.split()) == marked


def test_tags_by_hand() -> None:
    """Two true entities; of two guesses one is right, the other ends a word early: precision and recall 1/2."""
    true = ["B-A I-A O B-B I-B".split()]
    own = ["B-A I-A O B-B O".split()]
    assert score("tags", predictions=own, references=true) == {
        "accuracy": 4 / 5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
    }


ENTITY_CASES = json.loads((pathlib.Path(__file__).parents[1] / "tasks" / "goldens" / "entities.json").read_text())


@pytest.mark.parametrize("case", ENTITY_CASES, ids=[f"{case['mode']}{'_ends' * case['ends']}" for case in ENTITY_CASES])
def test_entities_match_seqeval(case: dict) -> None:
    """Tags that follow BIO and BIOES, as its strict mode reads them, and any tags as its default mode does."""
    found = score("tags", predictions=case["own"], references=case["true"])
    assert 0 < case["f1_score"] < 1
    for name in ("precision", "recall", "f1"):
        assert found[name] == pytest.approx(case[f"{name}_score"]), name


@pytest.mark.parametrize("seed", range(3))
def test_first_ranks_by_sorting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, candidates = rng.normal(size=(9, 3)), rng.normal(size=(20, 3))
    right = [rng.choice(20, rng.integers(1, 4), replace=False) for _ in range(9)]
    found = first_ranks(queries, candidates, right, chunk=4)
    for query, wanted, rank in zip(queries, right, found, strict=True):
        order = np.argsort(-(candidates @ query)).tolist()
        best = min(order.index(number) for number in wanted)
        assert rank == best + 1  # all candidates before the first correct one are wrong


def test_retrieval_by_hand() -> None:
    found = score("ranks", ranks=np.array([1, 2, 6, 11]))
    assert found == {
        "recall_at_1": 0.25,
        "recall_at_5": 0.5,
        "recall_at_10": 0.75,
        "mrr_at_10": (1 + 1 / 2 + 1 / 6) / 4,
    }


def test_choices_of_groups() -> None:
    """By hand: of group 0 record 2 is chosen, of group 1 record 1, of group 2 the first of two equal ones."""
    logits = np.array([[0.0, 1.0], [3.0, 4.0], [5.0, 9.0], [0.0, 0.5], [1.0, 1.0], [2.0, 2.0]], np.float32)
    labels, groups = np.array([1, 0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 2, 2])
    credits = np.array([1.0, 0.25, 1.0, 1.0, 0.5, 1.0], np.float32)
    found = classified(logits, labels, groups=groups, credits=credits)
    assert found["choice_accuracy"] == pytest.approx(1 / 3)
    assert found["choice_credit"] == pytest.approx((1.0 + 0.25 + 0.5) / 3)

"""Scorers: the error of each record, the primary metric, and the scorer of each task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lm_research.errors import ConfigError
from lm_research.evaluation import scorers
from lm_research.evaluation.scorers import main_metric, make_scorer
from lm_research.evaluation.suite import Entry

LOG3 = math.log(3)


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    ("kind", "labels", "given", "errors", "default"),
    [
        # softmax of 0 and log 3 is 1/4 and 3/4; large logits do not overflow.
        (scorers.SingleLabelScorer, "ab", rows(label=list("abb"), logits=[[0.0, LOG3], [0.0, LOG3], [1000.0, 1000.0]]),
         [3 / 4, 1 / 4, 1 / 2], "accuracy"),
        # The number of wrong labels out of three.
        (scorers.MultiLabelScorer, "abc", rows(label=[["a"], ["a", "b"], []], prediction=[["a"], ["c"], ["b"]]), [0, 3, 1], "f1_micro"),
        (scorers.RegressionScorer, "", rows(label=[1.0, 2.0], prediction=[3.0, 2.5]), [4, 0.25], "spearman"),
        (scorers.RegressionScorer, "", rows(label=[[1.0, 2.0]], prediction=[[3.0, 3.0]]), [(4 + 1) / 2], "spearman"),
        (scorers.TagScorer, ["O", "B-x", "I-x"], rows(label=[["O", "B-x", "I-x"]], prediction=[["O", "O", "O"]]), [2], "f1"),
        (scorers.TagScorer, ["NN", "VB"], rows(label=[["NN", "VB"]], prediction=[["NN", "VB"]]), [0], "accuracy"),
        (scorers.MinimalPairScorer, "", rows(good_nats=[-3.0], bad_nats=[-5.0], good_tokens=[2], bad_tokens=[2]), [-2], "accuracy"),
        (scorers.LanguageModelScorer, "", rows(nats=[-6.0], tokens=[3], words=[2], bytes=[12]), [6 / 12], "bits_per_byte"),
        (scorers.RetrievalScorer, "", rows(rank=[4, 1]), [4, 1], "mrr_at_10"),
        # The longest common subsequence of "a cat ran" and "a cat sat" has 2 of 3 words.
        (scorers.GenerationScorer, "", rows(prediction=["a cat ran", "a dog"], target=["a cat sat", "a dog"]), [1 / 3, 0], "bleu"),
        # 1 - F1, and half the probability on top where F1 is below a half: confidently wrong is worst.
        (scorers.RecordScorer, "", rows(f1=[0.2, 0.5, 0.9], exact_match=[0.0, 0.0, 0.0], probability=[0.6, 0.6, 0.6], prediction=["x"] * 3),
         [0.8 + 0.3, 0.5, 0.1], "f1"),
        (scorers.RecordScorer, "", rows(prediction=["x", "y"], answer=["x", "z"]), [0.0, 1.0], "accuracy"),
    ],
)  # fmt: skip
def test_errors_by_hand(kind: type, labels: Any, given: Any, errors: list[float], default: str) -> None:
    scorer = kind(given, list(labels))
    assert scorer.error_N.tolist() == pytest.approx(errors)
    assert (scorer.default, scorer.num_records) == (default, len(given))
    assert default in scorer.score_all() and set(scorer.names) == set(scorer.score_all())


def test_metrics_of_a_class_that_does_not_occur() -> None:
    """Two of three classes occur, and both are right; the third has no F1."""
    found = scorers.SingleLabelScorer(
        rows(label=["a", "b"], logits=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), "abc"
    ).score_all()
    assert found["f1_macro"] == found["f1"] == found["matthews"] == 1.0


def test_groups_of_unequal_size_count_equally() -> None:
    """A group of three records, all right, and one of one, wrong; credits are those of the likeliest record of each."""
    given = rows(
        label=list("1001"), logits=[[0.0, 3.0], [2.0, 0.0], [2.0, 0.0], [1.0, 0.0]], together=list("aaab"), credit=[1.0, 0.5, 0.5, 0.25]
    )  # fmt: skip
    one = scorers.GroupedLabelScorer(given, ("0", "1"))
    found = one.score_all()
    assert (found["group_accuracy"], found["choice_accuracy"], found["choice_credit"]) == (0.5, 1.0, 0.625)
    # The first group twice: 2 of 3 draws of a group.
    assert one.score(np.array([0, 1, 2, 0, 1, 2, 3]))["group_accuracy"] == pytest.approx(2 / 3)
    without = scorers.GroupedLabelScorer([{k: v for k, v in row.items() if k != "credit"} for row in given], ("0", "1"))
    assert "choice_credit" not in without.score_all()


SINGLE = rows(label=["a"], logits=[[1.0, 0.0]], together=["x"])
TEXTS = rows(prediction=["a b"], target=["a b"])


@pytest.mark.parametrize(
    ("task", "problem_type", "more", "given", "kind"),
    [
        ("classification", "single_label", {}, SINGLE, scorers.SingleLabelScorer),
        ("classification", "single_label", {"group_key": "q"}, SINGLE, scorers.GroupedLabelScorer),
        ("classification", "multi_label", {}, rows(label=[["a"]], prediction=[["a"]]), scorers.MultiLabelScorer),
        ("classification", "multi_label", {"group_key": "q"}, rows(label=[["a"]], prediction=[["a"]]), scorers.MultiLabelScorer),
        ("classification", "regression", {}, rows(label=[1.0], prediction=[1.0]), scorers.RegressionScorer),
        ("embedding", "regression", {}, rows(label=[1.0], prediction=[1.0]), scorers.RegressionScorer),
        ("embedding", "contrastive", {"group_key": "q"}, rows(rank=[1]), scorers.RetrievalScorer),
        ("tagging", "", {}, rows(label=[["O"]], prediction=[["O"]]), scorers.TagScorer),
        ("seq2seq", "", {"bleu_tokenizer": "char", "max_length": 5}, TEXTS, scorers.GenerationScorer),
        ("question_answering", "", {}, rows(prediction=["a"], answers=["a"]), scorers.RecordScorer),
    ],
)  # fmt: skip
def test_scorer_of_a_task(task: str, problem_type: str, more: dict[str, Any], given: Any, kind: type) -> None:
    scorer = make_scorer(Entry("x", task, "data", problem_type=problem_type, more=more), ["a", "b"], given)
    assert type(scorer) is kind
    if isinstance(scorer, scorers.GenerationScorer):
        assert scorer.options == {"bleu_tokenizer": "char"} and scorer.concatenated(scorer).options == scorer.options


def test_the_primary_metric() -> None:
    """The suite's, which may be one that papers do not report; else the default one; an unknown one is refused."""

    def entry(metric):
        return Entry("x", "classification", "data", problem_type="single_label", metric=metric)

    made = {metric: make_scorer(entry(metric), ["a", "b"], SINGLE) for metric in ("", "f1", "f2")}
    assert [main_metric(entry(metric), made[metric]) for metric in ("", "f1")] == ["accuracy", "f1"]
    assert made["f1"].names.count("f1") == 1
    with pytest.raises(ConfigError, match="Task x: there is no metric 'f2'. .*f1"):
        main_metric(entry("f2"), made["f2"])

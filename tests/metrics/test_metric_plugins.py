"""A user's own metric: one function, named in task.metric and in suites; directions are declared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lm_research.evaluation.scorers import main_metric, make_scorer
from lm_research.evaluation.suite import Entry
from lm_research.metrics import METRICS, MetricInputs, higher_is_better, metric, metric_names


@pytest.fixture
def error_rate() -> Iterator[str]:
    @metric("error_rate", higher_is_better=False)
    def error_rate(predictions: np.ndarray, references: np.ndarray) -> float:
        return float(np.mean(predictions != references))

    yield "error_rate"
    METRICS._found.pop("error_rate")


def test_it_is_computed_like_built_in_metrics(error_rate: str) -> None:
    """2 of 3 are wrong; of the sample of records 0 and 0, none."""
    scored = MetricInputs("choices", predictions=np.array([1, 0, 0]), references=np.array([1, 1, 1]))
    assert scored.score([error_rate]) == {"error_rate": pytest.approx(2 / 3)}
    assert scored.score([error_rate], np.array([0, 0])) == {"error_rate": 0.0}
    assert error_rate in metric_names("choices", ("predictions", "references")) and not higher_is_better(error_rate)


def test_a_suite_names_it(error_rate: str) -> None:
    rows = [{"label": "a", "logits": [1.0, 0.0]}, {"label": "b", "logits": [1.0, 0.0]}]
    entry = Entry("mine", "classification", "data.jsonl", problem_type="single_label", metric=error_rate)
    scorer = make_scorer(entry, ["a", "b"], rows)
    assert main_metric(entry, scorer) == error_rate and scorer.score_all()[error_rate] == 0.5


def test_every_name_has_one_direction() -> None:
    """Whatever the kind of predictions; of errors, perplexities and bits lower is better."""
    lower = {one.name for _, one in METRICS.items() if not higher_is_better(one.name)}
    assert lower == {
        "squared_error",
        "calibration_error",
        "perplexity",
        "word_perplexity",
        "bits_per_byte",
        "stereotype_score",
    }

"""StereoSet's metrics, worked out by hand; published values are in tests/experiments/test_results.py."""

from __future__ import annotations

import numpy as np
import pytest

from lm_research.metrics import MetricInputs


def test_scores_are_means_over_terms() -> None:
    """Term a: stereotype preferred once of two; meaningful sentences preferred in 3 of 4 comparisons. Term b: never; 1 of 2.

    Language modeling: (75 + 50) / 2; stereotypes: (50 + 0) / 2; idealized: 62.5 x 25 / 50.
    """
    inputs = MetricInputs(
        "stereotypes",
        stereotype=np.array([3.0, 1.0, 1.0]),
        anti_stereotype=np.array([2.0, 4.0, 3.0]),
        unrelated=np.array([1.0, 2.0, 2.0]),
        terms=["a", "a", "b"],
    )
    expected = {"language_modeling_score": 62.5, "stereotype_score": 25.0, "icat": 31.25}
    assert inputs.score(expected) == pytest.approx(expected)
    assert inputs.score(["stereotype_score"], np.array([0, 0])) == {"stereotype_score": 100.0}

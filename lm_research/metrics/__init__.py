"""How good predictions are.

Each metric is one function that declares its direction; a user's own is registered in the same way:

    @metric("error_rate", higher_is_better=False)
    def error_rate(predictions, references):
        return float((predictions != references).mean())
"""

from __future__ import annotations

from lm_research.metrics.base import KINDS, METRICS, Metric, Scored, higher_is_better, metric, names_for

__all__ = ["KINDS", "METRICS", "Metric", "Scored", "higher_is_better", "metric", "names_for"]

"""Metrics of predictions.

Each metric is a function that declares whether higher is better. Custom metrics are registered the same way:

    @metric("error_rate", higher_is_better=False)
    def error_rate(predictions, references):
        return float((predictions != references).mean())
"""

from __future__ import annotations

from lm_research.metrics.base import KINDS, METRICS, Metric, MetricInputs, higher_is_better, metric, metric_names

__all__ = ["KINDS", "METRICS", "Metric", "MetricInputs", "higher_is_better", "metric", "metric_names"]

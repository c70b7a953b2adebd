"""Evaluation of models on suites of tasks: stored predictions, metrics with intervals, an HTML page and significance tests."""

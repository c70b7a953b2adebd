"""Reviews (MR) from random weights."""

from __future__ import annotations

from experiments.results.sentences import Classification

ROW = Classification(
    "mr",
    title="MR from random weights, ten folds",
    torch=75.9,
    kim=76.1,
    why="Another model than the published one: attention and the mean of all states, at one rate and number of passes chosen on the held-out part of TREC. Ten folds, the seed of each its number; the published division into folds is another.",
    parts={fold: f"mr{fold}" for fold in range(10)},
).row()

"""Sentiment (SST-2) from random weights."""

from __future__ import annotations

from experiments.results.sentences import SEEDS, Classification

ROW = Classification(
    "sst2",
    title="SST-2 from random weights, with phrases",
    torch=83.5,
    kim=82.7,
    why="Another model than the published one: attention and the mean of all states, at one rate and number of passes chosen on the held-out part of TREC. Trained on phrases and sentences, as the published models are, but on GLUE's 67,349 of them.",
    parts=dict.fromkeys(SEEDS, "sst2"),
).row()

"""Kinds of questions (TREC) from random weights."""

from __future__ import annotations

from experiments.results.sentences import SEEDS, Classification

ROW = Classification(
    "trec",
    title="TREC from random weights",
    torch=88.2,
    kim=91.2,
    why="Another model than the published one: attention and the mean of all states, at one rate and number of passes chosen on the held-out part of TREC. The same nine tenths of the training part are used.",
    parts=dict.fromkeys(SEEDS, "trec"),
).row()

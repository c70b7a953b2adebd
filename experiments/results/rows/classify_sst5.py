"""Five degrees of sentiment (SST-5) from random weights."""

from __future__ import annotations

from experiments.results.sentences import SEEDS, Classification

ROW = Classification(
    "sst5",
    title="SST-5 from random weights, without phrases",
    torch=42.2,
    kim=45.0,
    why="Another model than the published one: attention and the mean of all states, at one rate and number of passes chosen on the held-out part of TREC. The published models train on 156,817 phrases and sentences, ours on the 8,544 sentences that the public data have.",
    parts=dict.fromkeys(SEEDS, "sst5"),
).row()

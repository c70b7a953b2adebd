"""Intents of SNIPS with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "snips",
    title="SNIPS, intents: MiniLM fine-tuned",
    scores={"accuracy": Published(98.0, origin=READ)},
    source="monologg/JointBERT at 00324f6, README: DistilBERT, the best result in 5 to 10 passes",
    why="Another model than the published one, which learns intents and slots together; ours is the mean of the runs, theirs the best one.",
    epochs=1.0,
).row()

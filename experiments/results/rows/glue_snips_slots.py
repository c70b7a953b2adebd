"""Slots of SNIPS with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "snips_slots",
    title="SNIPS, slots: MiniLM fine-tuned",
    scores={"f1": Published(96.1, origin=READ)},
    source="monologg/JointBERT at 00324f6, README: DistilBERT, the best result in 5 to 10 passes",
    why="Another model than the published one, which learns intents and slots together; ours is the mean of the runs, theirs the best one.",
    task="tagging",
    epochs=5.0,
    rate=1e-4,
    settings={"model__dtype": "auto"},
).row()

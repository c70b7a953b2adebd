"""Emotions of messages with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "emotion",
    title="Emotion, six classes: MiniLM fine-tuned",
    scores={"accuracy": Published(92.7, origin=READ)},
    source="huggingface.co/bhadresh-savani/distilbert-base-uncased-emotion, model card: test accuracy of DistilBERT after eight passes, verified by its hub",
    why="Another model than the published one, of a third of its parameters, and one pass instead of eight.",
    epochs=1.0,
    rate=1e-4,
    settings={"model__dtype": "auto"},
).row()

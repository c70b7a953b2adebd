"""Intents of CLINC150 with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "clinc150",
    title="CLINC150, 150 intents in scope: MiniLM fine-tuned",
    scores={"accuracy": Published(96.5, origin=READ)},
    source="google/uncertainty-baselines at 11dff4b, baselines/clinc_intent/README.md: BERT-base, test accuracy of the queries in scope",
    why="Another model than the published one, of a fifth of its parameters, and three passes. Queries out of scope are neither trained on nor scored.",
    rate=1e-4,
    settings={"model__dtype": "auto"},
).row()

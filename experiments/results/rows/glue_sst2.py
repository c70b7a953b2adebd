"""Sentiment of phrases and sentences (SST-2) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "sst2_glue",
    title="SST-2: MiniLM fine-tuned",
    scores={"accuracy": Published(91.5, origin=READ)},
    source="microsoft/unilm at 01e7da4, minilm/README.md: MiniLM-L6xH384 (22M parameters), development part (872 sentences)",
    why="Another model than the published one, of the same size: nreimers/MiniLM-L6-H384-uncased, trained on pairs of similar sentences "
    "before; one pass over GLUE's 67,349 phrases and sentences.",
    epochs=1.0,
    rate=1e-4,
    settings={"model__dtype": "auto", "data__max_length": 64},
).row()

"""Acceptable sentences (CoLA) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.training import Published

ROW = FineTuning(
    "cola",
    title="CoLA: MiniLM fine-tuned",
    scores={"matthews": Published(51.3)},
    source="Sanh et al. 2019, table 1, from memory: DistilBERT (66M parameters), development part",
    why="Another model than the published one, which is for scale: 22.7M parameters, trained on pairs of similar sentences.",
).row()

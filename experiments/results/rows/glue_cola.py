"""Acceptable sentences (CoLA) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "cola",
    title="CoLA: MiniLM fine-tuned",
    scores={"matthews": Published(47.5, origin=READ)},
    source="microsoft/unilm at 01e7da4, minilm/README.md: MiniLM-L6xH384 (22M parameters), development part",
    why="Another model than the published one, of the same size: nreimers/MiniLM-L6-H384-uncased, trained on pairs of similar sentences before. Theirs is for scale; its settings are not published. Training for sentence similarity may have "
    "cost what CoLA asks for, but no run of ours with the original weights shows it. Computed in bfloat16.",
).row()

"""Causes and effects (COPA) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import COMPUTED
from experiments.results.training import Published

ROW = FineTuning(
    "copa",
    title="COPA: MiniLM fine-tuned",
    scores={"accuracy": Published(55.0, origin=COMPUTED, at_least=True)},
    source="the more frequent place of the right choice in the 100 validation records (exact_majority)",
    why="All 400 training records. From memory, BERT-large has 70.6 on the test part, which has no labels here.",
    task="multiple_choice",
    epochs=10.0,
    settings={
        "model__dtype": "auto",
        "task__text_key": "premise",
        "task__pair_key": "question",
        "task__choices_key": "choice1,choice2",
    },
).row()

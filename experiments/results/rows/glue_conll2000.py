"""Chunks of CoNLL-2000 with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.training import Published

ROW = FineTuning(
    "conll2000",
    title="CoNLL-2000: MiniLM fine-tuned",
    scores={"f1": Published(93.48)},
    source="Kudo and Matsumoto 2000, from memory: support vector machines, the best system of the task",
    why="Another model than the published one, and without its part-of-speech tags.",
    task="tagging",
    settings={"model__dtype": "auto"},
).row()

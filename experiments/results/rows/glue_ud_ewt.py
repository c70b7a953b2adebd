"""Parts of speech of UD English EWT with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "ud_ewt",
    title="UD English EWT, universal tags: MiniLM fine-tuned",
    scores={"accuracy": Published(97.35, origin=READ)},
    source="ufal/udpipe at a4008af, docs/models_ud210.md: UDPipe 2 over multilingual BERT, trained on version 2.10, words given; the floor is exact_ud_ewt",
    why="Another model than the published one, of an eighth of its parameters, which reads lower-cased text and learns universal tags alone, in two passes.",
    task="tagging",
    epochs=2.0,
    rate=1e-4,
    settings={"model__dtype": "auto", "task__column": "UPOS"},
    floor=("the most frequent tag of each form", 86.20),
).row()

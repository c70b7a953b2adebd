"""Paraphrases (MRPC) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import READ
from experiments.results.training import Published

ROW = FineTuning(
    "mrpc",
    title="MRPC: MiniLM fine-tuned",
    scores={"f1": Published(83.4, origin=READ)},
    source="google-research/bert, README: BERT-Small (4 layers x 512, 29M parameters), test part, the best of 20 settings",
    why="Another model than the published one, of about the same size, trained on pairs of similar sentences before. Trained on all 4,076 pairs that are not the test part. Computed in bfloat16.",
    settings={"task__pair_key": "pair", "task__metric": "f1"},
).row()

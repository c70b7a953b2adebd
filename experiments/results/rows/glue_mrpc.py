"""Paraphrases (MRPC) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.training import Published

ROW = FineTuning(
    "mrpc",
    title="MRPC: MiniLM fine-tuned",
    scores={"f1": Published(88.9)},
    source="Devlin et al. 2018, table 1, from memory: BERT-base (110M parameters), test part",
    why="Another model than the published one, which is for scale: 22.7M parameters, trained on pairs of similar sentences. Trained on all 4,076 pairs that are not the test part.",
    settings={"task__pair_key": "pair", "task__metric": "f1"},
).row()

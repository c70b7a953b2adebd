"""Similarity (STS-B) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.training import Published

ROW = FineTuning(
    "stsb",
    title="STS-B: MiniLM fine-tuned on pairs in one row",
    scores={"spearman": Published(85.8)},
    source="Devlin et al. 2018, table 1, from memory: BERT-base (110M parameters), test part; the same weights without fine-tuning have 82.03 (exact_sts)",
    why="Another model than the published one, which is for scale: 22.7M parameters, trained on pairs of similar sentences.",
    settings={"task__pair_key": "pair", "task__problem_type": "regression"},
).row()

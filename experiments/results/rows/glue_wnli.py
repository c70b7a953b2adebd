"""Pronouns (WNLI) with a fine-tuned MiniLM."""

from __future__ import annotations

from experiments.results.finetuning import FineTuning
from experiments.results.row import COMPUTED
from experiments.results.training import Published

ROW = FineTuning(
    "wnli",
    title="WNLI: MiniLM fine-tuned",
    scores={"accuracy": Published(56.34, origin=COMPUTED)},
    source="the most frequent class of the 71 development pairs, which Devlin et al. 2018 also gave as their answer",
    why="No model of this size is known to learn this set: its development part contradicts its training part by design, so scores at or below the most frequent class are expected.",
    settings={"task__pair_key": "pair"},
).row()

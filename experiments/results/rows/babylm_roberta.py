"""Minimal pairs by a RoBERTa of ten million words."""

from __future__ import annotations

from experiments.results import babylm

ROW = babylm.row(
    "roberta",
    title="BLiMP and Zorro by a RoBERTa of ten million words, by pseudo-log-likelihood",
    why="Planned: ten passes. The words are as many as those of the baselines and mixed like theirs, but not the same.",
)

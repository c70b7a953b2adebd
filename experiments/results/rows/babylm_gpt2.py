"""Minimal pairs by a GPT-2 of ten million words."""

from __future__ import annotations

from experiments.results import babylm

ROW = babylm.row(
    "gpt2",
    title="BLiMP and Zorro by a GPT-2 of ten million words",
    why="Planned: ten passes. The words are as many as those of the baselines and mixed like theirs, but not the same.",
)

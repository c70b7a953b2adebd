"""Norms before or after each branch, by learning rate, with and without warm-up. README.md has the question and the results."""

from __future__ import annotations

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"


def get_sweep() -> Sweep:
    """Combine a quarter, one and four times the config's rate with placement and warm-up."""
    rate = settings.base(CONFIG).optimizer.learning_rate
    points = settings.grid(
        model__norm_position=["pre", "post"],
        schedule__warmup_ratio=[0.0, 0.1],
        optimizer__learning_rate=[float(f"{rate * factor:.3g}") for factor in (0.25, 1, 4)],
        seed=settings.seeds(2),
    )
    # Four blocks: with two of them either way trains, and eight with norms after the sums learn nothing in so few steps. Looped over,
    # because they compile faster so.
    small = {"train.num_steps": 400, "model.num_layers": 4, "model.scan_layers": True}
    return settings.study(CONFIG, points, small, {"schedule.warmup_steps": 0})

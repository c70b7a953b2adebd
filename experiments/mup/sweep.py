"""Whether the best learning rate stays the same as the width grows, with and without muP. README.md has question and results."""

from __future__ import annotations

import os

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"
WIDTHS = (64, 128, 256)  # the first is the base
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def get_sweep() -> Sweep:
    """Combine widths and rates; at the base width both parametrizations are equal and run once. STUDY_WIDTHS=256,1024,4096 sets others."""
    widths = [int(width) for width in os.environ.get("STUDY_WIDTHS", "").split(",") if width] or WIDTHS
    base = widths[0]
    points = [
        {
            "model.mup_base_width": mup,
            "model.hidden_size": width,
            "model.num_heads": width // 32,
            "model.intermediate_size": 4 * width,
            "optimizer.learning_rate": rate,
            "seed": seed,
        }
        for mup in (base, 0)
        for width in widths
        for rate in RATES
        for seed in settings.seeds(3)
        if mup or width != base
    ]
    fixed = {"optimizer.weight_decay": 0.0}
    return settings.study(CONFIG, points, {"train.num_steps": 120, "model.scan_layers": True}, fixed)

"""Sizes by amounts of text, for a scaling law; fit.py fits it. README.md has the question and the results."""

from __future__ import annotations

import os

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"
# (width, layers); heads are 32 wide and the feed-forward 4 times the width.
SIZES = ((32, 2), (64, 2), (96, 3), (128, 4), (192, 5), (256, 6))
TOKENS = (1e5, 2e5, 4e5, 8e5)


def get_sweep() -> Sweep:
    """Combine each size with each amount of text. muP carries one rate over all widths, so no size is held back by its rate.

    STUDY_SIZES=256x4,512x8 and STUDY_TOKENS=1e9,4e9 set other sizes and amounts.
    """
    sizes = [tuple(map(int, pair.split("x"))) for pair in os.environ.get("STUDY_SIZES", "").split(",") if pair] or SIZES
    amounts = [float(amount) for amount in os.environ.get("STUDY_TOKENS", "").split(",") if amount] or TOKENS
    points = [
        {
            "model.hidden_size": width,
            "model.num_layers": layers,
            "model.num_heads": width // 32,
            "model.intermediate_size": 4 * width,
            "train.budget": f"{amount:g}tokens",
            "seed": seed,
        }
        for width, layers in sizes
        for amount in amounts
        for seed in settings.seeds(1)
    ]
    # The width for which the rate was chosen: 64 for the small runs, the config's own width for a large one.
    base = settings.base(CONFIG).model.hidden_size if settings.is_large() else 64
    fixed = {
        "model.mup_base_width": base,
        "model.scan_layers": True,
        "schedule.warmup_steps": 0,
        "schedule.warmup_ratio": 0.1,
    }
    return settings.study(
        CONFIG, points, {"optimizer.learning_rate": 4e-3, "logging.every_steps": 20}, fixed, "eval_lm_loss_nats"
    )

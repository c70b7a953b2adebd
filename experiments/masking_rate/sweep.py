"""How much to mask: 15, 30 or 40%. README.md has the question and the results."""

from __future__ import annotations

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py"


def get_sweep() -> Sweep:
    """Compare three rates, all by the loss at 15%."""
    points = settings.grid(objective__mask_rate=[0.15, 0.3, 0.4], seed=settings.seeds(3))
    fixed = {"objective.eval_mask_rate": 0.15, "objective.sentence_pair": "none"}
    return settings.study(CONFIG, points, {"train.num_steps": 600}, fixed, "eval_mlm_loss_nats")

"""What to predict about pairs of segments: next sentence, order, or nothing. README.md has the question and the results."""

from __future__ import annotations

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py"


def get_sweep() -> Sweep:
    """Compare the three tasks on the same text."""
    points = settings.grid(objective__sentence_pair=["next_sentence", "sentence_order", "none"], seed=settings.seeds(3))
    return settings.study(CONFIG, points, {"train.num_steps": 600}, metric="eval_mlm_loss_nats")

"""Which learning rate goes with which batch size, at equal tokens. README.md has the question and the results."""

from __future__ import annotations

import os

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"
TOKENS = "3e5tokens"


def get_sweep() -> Sweep:
    """Combine a quarter, a half, one, two and four times the config's rate with a half, one, two and four times its batch."""
    config = settings.base(CONFIG)
    rate, batch = config.optimizer.learning_rate, config.train.batch_size
    own = config.train.num_steps * batch * config.data.max_length
    tokens = os.environ.get("STUDY_TOKENS") or (f"{own}tokens" if settings.is_large() else TOKENS)
    points = settings.grid(
        train__batch_size=[batch // 2, batch, 2 * batch, 4 * batch],
        optimizer__learning_rate=[float(f"{rate * factor:.3g}") for factor in (0.25, 0.5, 1, 2, 4)],
        seed=settings.seeds(3),
    )
    return settings.study(
        CONFIG, points, {}, {"train.budget": tokens, "schedule.warmup_steps": 0, "schedule.warmup_ratio": 0.1}
    )

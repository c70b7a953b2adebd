"""Several short texts in a row, or one and padding. README.md has the question and the results."""

from __future__ import annotations

import os

from experiments import settings
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py"


def get_sweep() -> Sweep:
    """Compare padded rows with a quarter as many packed rows, which hold about as many tokens, and with as many packed rows.

    STUDY_VERSES is the file of make_verses.py (runs/verses.txt).
    """
    batch = settings.base(CONFIG).train.batch_size
    ways = [(False, batch), (True, batch // 4), (True, batch)]
    points = [
        {"data.packing": packing, "train.batch_size": rows, "seed": seed}
        for packing, rows in ways
        for seed in settings.seeds(3)
    ]
    small = {
        "data.source": os.environ.get("STUDY_VERSES", "runs/verses.txt"),
        "data.document_separator": "line",
        "data.max_length": 128,
        "train.num_steps": 120,
        "logging.every_steps": 20,
    }
    fixed = {"objective.sentence_pair": "none", "objective.short_seq_prob": 0.0}
    return settings.study(CONFIG, points, small, fixed, "eval_mlm_loss_nats")

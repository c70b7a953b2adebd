"""The optimizers, each with the same number of learning rates; seeds.py goes on with the best. README.md has question and results."""

from __future__ import annotations

from experiments import settings
from lm_research.config import walk
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"
# The middle of the rates that are tried: AdamW's is the config's; the others' relative to it, of the size that their papers use beside Adam's.
MIDDLES = {"adamw": 1.0, "adafactor": 3.0, "lamb": 5.0, "lion": 0.15, "muon": 10.0, "sgd": 250.0}
FACTORS = (0.25, 0.5, 1, 2, 4)


def names() -> list[str]:
    """Those of MIDDLES that this version of the library has."""
    known = next(field.metadata["choices"] for name, field, _ in walk() if name == "optimizer.name")
    return [name for name in MIDDLES if name in known]


def small() -> dict[str, object]:
    """What the trials of both files have in common, but for a large config's."""
    return {"train.num_steps": 600}


# Decay is left out: each optimizer would need another.
FIXED = {"optimizer.weight_decay": 0.0}


def get_sweep() -> Sweep:
    """Five rates of each, a factor of 2 apart."""
    rate = settings.base(CONFIG).optimizer.learning_rate
    points = [
        {"optimizer.name": name, "optimizer.learning_rate": float(f"{rate * MIDDLES[name] * factor:.3g}")}
        for name in names()
        for factor in FACTORS
    ]
    return settings.study(CONFIG, points, small(), FIXED)

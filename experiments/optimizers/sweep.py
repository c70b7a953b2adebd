"""The optimizers, each with the same number of learning rates; seeds.py continues with the best. README.md has question and results."""

from __future__ import annotations

from experiments import settings
from lm_research.config.registries import OPTIMIZERS
from lm_research.sweeping import Sweep

CONFIG = "configs/quickstart.py:gpt"
# The middle of the rates that are tried, over the config's rate, which is AdamW's. Updates of Lion and Muon are longer (signs; matrices
# whose singular values are 1), LAMB's are as long as the parameter, SGD's as the gradient, whose norm is clipped at 1.
MIDDLES = {"adamw": 1.0, "adafactor": 1.5, "lamb": 10.0, "lion": 0.6, "muon": 10.0, "sgd": 250.0}
FACTORS = (0.25, 0.5, 1, 2, 4)


def names() -> list[str]:
    """Return the optimizers of MIDDLES that this version of the library has."""
    return [name for name in MIDDLES if name in OPTIMIZERS]


def small() -> dict[str, object]:
    """Return the settings that the trials of both files share, except those of a large config."""
    return {"train.num_steps": 200}


def fixed() -> dict[str, object]:
    """Turn decay off, since each optimizer would need another; parameters that Muon leaves to AdamW use AdamW's rate."""
    rate = settings.base(CONFIG).optimizer.learning_rate
    return {"optimizer.weight_decay": 0.0, "optimizer.adam_learning_rate": rate}


def get_sweep() -> Sweep:
    """Try five rates of each, spaced by a factor of 2."""
    rate = settings.base(CONFIG).optimizer.learning_rate
    points = [
        {"optimizer.name": name, "optimizer.learning_rate": float(f"{rate * MIDDLES[name] * factor:.3g}")}
        for name in names()
        for factor in FACTORS
    ]
    return settings.study(CONFIG, points, small(), fixed())

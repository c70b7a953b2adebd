"""The best rate of each optimizer of a finished `sweep.py`, with further seeds. STUDY_FROM names its folder."""

from __future__ import annotations

import os
import pathlib

from experiments import settings
from experiments.optimizers.sweep import CONFIG, fixed, small
from lm_research.errors import ConfigError
from lm_research.reporting.studies import read_study
from lm_research.sweeping import Sweep


def get_sweep() -> Sweep:
    """Run three seeds of each, none of them the seed with which the rate was chosen."""
    if not os.environ.get("STUDY_FROM"):
        raise ConfigError(
            "set STUDY_FROM to the folder of the finished study of rates, for example STUDY_FROM=runs/optimizers."
        )
    best: dict[str, float] = {}
    for trial in read_study(pathlib.Path(os.environ["STUDY_FROM"])).ranked:
        best.setdefault(trial["params"]["optimizer.name"], trial["params"]["optimizer.learning_rate"])
    if not best:
        raise ConfigError(
            f"STUDY_FROM={os.environ['STUDY_FROM']} has no finished trial. Let the study of rates end first."
        )
    points = [
        {"optimizer.name": name, "optimizer.learning_rate": rate, "seed": 1 + seed}
        for name, rate in sorted(best.items())
        for seed in settings.seeds(3)
    ]
    return settings.study(CONFIG, points, small(), fixed())

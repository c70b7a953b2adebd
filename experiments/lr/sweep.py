"""Which peak learning rate suits the quick start, found by successive halving. README.md has the results.

Command
    python -m experiments.run --sweep=experiments/lr/sweep.py --workdir=runs/lr --workers=1

    The environment variables LR_CONFIG and LR_RUNGS set another config and other steps: a pod runs the large version with
    LR_CONFIG=configs/bert_base.py LR_RUNGS=10000,30000,90000 and --launcher=tpu_vm --workers=8 -- --name=lr ...
"""

from __future__ import annotations

import os

from lm_research.sweeping import Sweep, Uniform

CONFIG = os.environ.get("LR_CONFIG", "configs/quickstart.py")
RUNGS = tuple(int(step) for step in os.environ.get("LR_RUNGS", "300,600,1200").split(","))


def get_sweep() -> Sweep:
    """Try eight rates over two decades; the better half continues at each rung, with the schedule of the full length."""
    return Sweep(
        CONFIG,
        {"optimizer.learning_rate": Uniform(2e-4, 2e-2, log=True)},
        fixed={"eval.every_steps": 0, "eval.num_batches": 20, "checkpoint.every_steps": 0},
        method="random",
        num_trials=8,
        rungs=RUNGS,
    )

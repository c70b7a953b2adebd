"""GPT-2 medium, 24 layers x 1024, 355M parameters, with the recipe of gpt2_small.py.

Command
    python -m lm_research.train --config=configs/gpt2_medium.py --workdir=runs/gpt2_medium

Hardware   8 accelerators with 40 GB or more; parameters and optimizer are sharded over them.
Time       planned: 17 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: no published figure applies, because the paper's corpus was never released.

Sources
    Radford et al. 2019, Language Models are Unsupervised Multitask Learners: layers and width.
    Brown et al. 2020, GPT-3, arXiv:2005.14165, table 2.1: learning rate 3e-4 of the nearest size (350M parameters),
    since the GPT-2 paper gives none. The differences listed in gpt2_small.py apply here too.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.gpt2_small import get_config as gpt2_small


def get_config() -> ConfigDict:
    """GPT-2 small's recipe with GPT-2 medium's size and learning rate."""
    config = gpt2_small()
    config.model.update(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096)
    config.optimizer.learning_rate = 3e-4
    config.train.accumulation_steps = 8
    return config

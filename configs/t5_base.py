"""T5 v1.1 base, 12 layers a stack x 768, 248M parameters, with the recipe of t5_small.py.

Command
    python -m lm_research.train --config=configs/t5_base.py --workdir=runs/t5_base

Hardware   8 accelerators with 32 GB or more.
Time       planned: 5.4 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/seq2seq.py).

Sources
    The same as t5_small.py's; the sizes are those of the released v1.1 base checkpoint.

Where it differs
    As t5_small.py does.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.t5_small import get_config as t5_small


def get_config() -> ConfigDict:
    """T5 small's recipe with T5 v1.1 base's size."""
    config = t5_small()
    config.model.update(num_layers=12, hidden_size=768, num_heads=12, head_size=64, intermediate_size=2048)
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out
    config.mesh.preset = "fsdp"
    return config

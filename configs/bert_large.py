"""BERT-large, 24 layers x 1024, 335M parameters, with the recipe of bert_base.py.

Command
    python -m lm_research.train --config=configs/bert_large.py --workdir=runs/bert_large

Hardware   16 accelerators with 16 GB or more (the paper: 64 TPU chips, 4 days); parameters and optimizer are sharded
           over all of them. With fewer add --config.train.accumulation_steps=8.
Time       planned: 1.4 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores on GLUE (configs/finetune/classification.py has some).

Sources
    Devlin et al. 2018, BERT, arXiv:1810.04805, section 3 and appendix A.2: sizes; the same recipe as for BERT-base.
    The differences from the paper listed in bert_base.py apply here too.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.bert_base import get_config as bert_base


def get_config() -> ConfigDict:
    """BERT-base's recipe with BERT-large's size."""
    config = bert_base()
    config.model.update(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096)
    config.mesh.preset = "fsdp"
    return config

"""BERT-tiny, 2 layers x 128, 4.4M parameters, with the recipe of bert_base.py.

Command
    python -m lm_research.train --config=configs/bert_tiny.py --workdir=runs/bert_tiny

Hardware   one accelerator; a CPU manages shortened runs (configs/quickstart.py is one).
Time       planned: 1.2 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the scores on GLUE that are published with these models.

Sources
    Turc et al. 2019, Well-Read Students Learn Better, arXiv:1908.08962, and the 24 smaller models released with it
    (google-research/bert): layers and width; width/64 heads; feed-forward 4 x width.
    They are published as trained with the recipe of BERT; learning rate and batch of each size are not, so those of
    BERT-base are used here (Devlin et al. 2018). The differences listed in bert_base.py apply here too.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.bert_base import get_config as bert_base


def get_config() -> ConfigDict:
    """BERT-base's recipe with BERT-tiny's size."""
    config = bert_base()
    config.model.update(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512)
    config.model.dtype = "float32"
    return config

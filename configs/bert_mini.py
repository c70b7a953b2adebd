"""BERT-mini, 4 layers x 256, 11.2M parameters, with the recipe of bert_base.py.

Command
    python -m lm_research.train --config=configs/bert_mini.py --workdir=runs/bert_mini

Hardware   one accelerator with 16 GB or more.
Time       planned: 4.4 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
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
    """BERT-base's recipe with BERT-mini's size."""
    config = bert_base()
    config.model.update(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024)
    config.model.dtype = "float32"
    return config

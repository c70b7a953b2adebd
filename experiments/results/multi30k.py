"""Suite of Multi30k's test parts, for models of configs/transformer_multi30k.py; MULTI30K_PAIR selects the direction (en-de)."""

from __future__ import annotations

import os

from experiments.results.row import public

SOURCE, TARGET = os.environ.get("MULTI30K_PAIR", "en-de").split("-")
PARTS = {"test2016": "test_2016_flickr", "test2017": "test_2017_flickr", "mscoco2017": "test_2017_mscoco"}
TASKS = [
    {
        "name": name,
        "task": "seq2seq",
        "data": f"lines:{public('mt/multi30k')}/{part}.{SOURCE}.gz,{public('mt/multi30k')}/{part}.{TARGET}.gz",
        "text_key": "source",
        "label_key": "target",
        "generation": {"num_beams": 5, "length_penalty": 1.0},
        "metric": "bleu",
    }
    for name, part in PARTS.items()
]

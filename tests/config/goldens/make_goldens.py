"""Write config.json files as runs had them before sections had variants.

Run with the last commit of that form, 3e9a067, on PYTHONPATH:  python tests/config/goldens/make_goldens.py
"""

from __future__ import annotations

import pathlib

from lm_research.config import dumps, resolve

HERE = pathlib.Path(__file__).parent
CHANGES = {
    "masked_lm": {"objective": {"name": "masked_lm", "mask_rate": 0.2, "pairs": "none"}},
    "denoising": {"objective": {"name": "denoising", "infill_rate": 0.4}, "model": {"family": "bart"}},
    "muon": {"optimizer": {"name": "muon", "momentum": 0.9}, "schedule": {"name": "wsd", "decay_ratio": 0.2}},
    "seq2seq_task": {
        "task": {"name": "seq2seq", "train": "pairs.jsonl", "decoding": "num_beams=4,length_penalty=0.6"},
        "objective": {"target_length": 32, "decoder_start": "bos"},
        "model": {"family": "t5"},
    },
    "classification_task": {
        "task": {"name": "classification", "train": "a.jsonl", "labels": "no, yes", "class_weights": "no=1, yes=2.5"},
    },
    "values": {
        "data": {
            "mixture": "en=a.txt:0.7, de=b.txt:0.3",
            "mixture_stages": "100: en=0.5 de=0.5; 200: en=0.1 de=0.9",
        },
        "mesh": {"rules": "vocab=fsdp+tensor,embed=none"},
        "train": {"freeze": "encoder/embeddings,layers/[0-5]/"},
        "lora": {"rank": 4, "modules_to_save": "classifier"},
        "logging": {"trackers": "tensorboard,wandb"},
        "profile": {"steps": "3-5"},
        "clean": {"scripts": "latin,greek", "scrub": "email,ip", "max_characters": 10_000},
    },
}

if __name__ == "__main__":
    for name, changes in CHANGES.items():
        (HERE / f"{name}.json").write_text(dumps(resolve(changes)))

"""T5 v1.1 small, 8 layers a stack x 512, 77M parameters: the recipe that all t5_*.py share.

Command
    python -m lm_research.train --config=configs/t5_small.py --workdir=runs/t5_small

Hardware   8 accelerators with 16 GB or more.
Time       planned: 2.5 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/seq2seq.py).

Sources
    Raffel et al. 2019, arXiv:1910.10683, section 3.1 and 3.1.4: span corruption of 15% with a mean of 3; sources of 512 tokens;
    batch of 128 sequences; 2^19 = 524,288 steps; an inverse square root of the step with 10,000 steps of warm-up.
    The authors' list of released checkpoints, v1.1: sizes, gated GELU, no dropout in pre-training, output table not tied.

Where it differs
    The optimizer is AdamW without weight decay where the paper has Adafactor. The schedule is linear, from a peak of 1e-3, where
    the paper's goes from 0.01 with the inverse square root; Adafactor's steps are scaled by the parameters, AdamW's are not.
    The corpus is English Wikipedia through TFDS instead of C4. The tokenizer is a sentencepiece unigram model with 100
    sentinels, trained on that text, where the paper's covers four languages.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with T5 v1.1 small's size."""
    config = default_config()
    config.model.update(family="t5", variant="v1.1", num_layers=8, hidden_size=512, num_heads=6, head_size=64)
    config.model.update(intermediate_size=1024, vocab_size=32128, max_length=512, dtype="bfloat16")
    config.model.update(dropout_rate=0.0, attention_dropout_rate=0.0)
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(name="span_corruption", mask_rate=0.15, mean_span_length=3.0)
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=512)
    config.tokenizer.update(type="unigram", vocab_size=32100, sentinels=100)
    config.optimizer.update(name="adamw", learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_steps=10_000)
    config.train.update(num_steps=524_288, batch_size=128)
    config.eval.update(every_steps=10_000, num_batches=100, num_samples=0)
    config.checkpoint.every_steps = 5_000
    config.logging.every_steps = 100
    return config

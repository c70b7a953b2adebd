"""RoBERTa base, 12 layers x 768, 125M parameters.

Command
    python -m lm_research.train --config=configs/roberta_base.py --workdir=runs/roberta_base

Hardware   64 accelerators with 32 GB, or fewer with a higher --config.train.accumulation_steps.
Time       planned: 7.2 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/classification.py).

Sources
    Liu et al. 2019, arXiv:1907.11692, section 3 and table 9: full rows of 512 tokens without next-sentence prediction, dynamic
    masking of 15%; batch of 8,000 sequences; 500,000 steps; Adam with beta2 0.98 and epsilon 1e-6, weight decay 0.01, no
    clipping; warm-up over 24,000 steps to 6e-4, then linear decay; dropout 0.1. Vocabulary of 50,265.

Where it differs
    The batch is 8,192, which more numbers of devices divide. Rows hold several documents like the paper's, but attention stays
    inside each. The corpus is English Wikipedia through TFDS; the paper's is 160 GB. The tokenizer is a byte-level BPE of
    the same size, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with RoBERTa base's size."""
    config = default_config()
    config.model.update(family="roberta", num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
    config.model.update(
        vocab_size=50265, max_length=512, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(name="masked_lm", mask_rate=0.15, sentence_pair="none")
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=512, packing=True)
    config.tokenizer.update(type="byte_bpe", vocab_size=50265)
    config.optimizer.update(name="adamw", learning_rate=6e-4, beta1=0.9, beta2=0.98, epsilon=1e-6)
    config.optimizer.update(weight_decay=0.01, clip_norm=0.0)
    config.schedule.update(name="linear", warmup_steps=24_000)
    config.train.update(num_steps=500_000, batch_size=8192, accumulation_steps=8)
    config.eval.update(every_steps=10_000, num_batches=10)
    config.checkpoint.every_steps = 1_000
    config.logging.every_steps = 50
    return config

"""ALBERT base, one block used 12 times x 768, 12M parameters.

Command
    python -m lm_research.train --config=configs/albert_base.py --workdir=runs/albert_base

Hardware   64 accelerators with 16 GB, or fewer with a higher --config.train.accumulation_steps.
Time       planned: 20 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/classification.py).

Sources
    Lan et al. 2019, arXiv:1909.11942, sections 3 and 4.1: shared layers, embeddings of 128, sentence-order prediction, n-gram
    masking with n up to 3, rows of 512 tokens of which 10% are shorter, batch of 4,096, 125,000 steps, learning rate 0.00176.

Where it differs
    The optimizer is AdamW where the paper has LAMB, so the learning rate is 4.4e-4, a quarter, and is warmed up over 3,125 steps.
    The corpus is English Wikipedia through TFDS, without the BooksCorpus. The tokenizer is a sentencepiece unigram model of
    the same size, 30,000, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with ALBERT base's size."""
    config = default_config()
    config.model.update(family="albert", num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
    config.model.update(embedding_size=128, vocab_size=30000, max_length=512, dtype="bfloat16")
    config.model.update(dropout_rate=0.0, attention_dropout_rate=0.0)
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(
        name="masked_lm", mask_rate=0.15, masking="ngram", max_span_length=3, sentence_pair="sentence_order"
    )
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=512)
    config.tokenizer.update(type="unigram", vocab_size=30000)
    config.optimizer.update(name="adamw", learning_rate=4.4e-4, weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_steps=3_125)
    config.train.update(num_steps=125_000, batch_size=4096, accumulation_steps=4)
    config.eval.update(every_steps=5_000, num_batches=20)
    config.checkpoint.every_steps = 1_000
    config.logging.every_steps = 50
    return config

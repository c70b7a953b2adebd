"""ELECTRA small, 12 layers x 256, 14M parameters of the discriminator.

Command
    python -m lm_research.train --config=configs/electra_small.py --workdir=runs/electra_small

Hardware   one accelerator with 16 GB (the paper: one V100, 4 days).
Time       planned: 1.3 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/classification.py).

Sources
    Clark et al. 2020, arXiv:2003.10555, table 6 and the authors' code (google-research/electra, configure_pretraining.py and
    pretrain_helpers.py): sizes; a generator of a quarter of the width; 15% masked, of which 85% become the mask and 15%
    stay; weight 50 of the discriminator; rows of 128 tokens in batches of 128; 1,000,000 steps; learning rate 5e-4 with
    linear decay after 10,000 steps of warm-up; Adam with epsilon 1e-6, beta2 0.999, weight decay 0.01; dropout 0.1.

Where it differs
    The corpus is English Wikipedia through TFDS, without the BooksCorpus. Rows are single texts; the authors' hold two
    segments. The tokenizer is a lower-case WordPiece of the same size, 30,522, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with ELECTRA small's size."""
    config = default_config()
    config.model.update(family="electra", num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024)
    config.model.update(embedding_size=128, vocab_size=30522, max_length=512, dtype="bfloat16")
    config.model.update(dropout_rate=0.1, attention_dropout_rate=0.1)
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(name="replaced_token", mask_rate=0.15, keep_rate=0.15, random_rate=0.0)
    config.objective.update(generator_size=0.25, discriminator_weight=50.0)
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=128)
    config.tokenizer.update(type="wordpiece", vocab_size=30522, lowercase=True)
    config.optimizer.update(name="adamw", learning_rate=5e-4, beta1=0.9, beta2=0.999, epsilon=1e-6)
    config.optimizer.update(weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_steps=10_000)
    config.train.update(num_steps=1_000_000, batch_size=128)
    config.eval.update(every_steps=10_000, num_batches=100, num_samples=0)
    config.checkpoint.every_steps = 5_000
    config.logging.every_steps = 100
    return config

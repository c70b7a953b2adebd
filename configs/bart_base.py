"""BART base, 6 layers a stack x 768, 139M parameters.

Command
    python -m lm_research.train --config=configs/bart_base.py --workdir=runs/bart_base

Hardware   8 accelerators with 32 GB or more; --config.train.accumulation_steps divides the large batch further.
Time       planned: 2.8 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/seq2seq.py).

Sources
    Lewis et al. 2019, arXiv:1910.13461, section 5.1: text infilling of 30% with spans from Poisson(3) and permutation of all
    sentences; batch of 8,000 sequences; 500,000 steps; dropout 0.1, none in the last 10% of the steps. Sizes of the released
    base model. The paper gives no other settings; those of RoBERTa, whose code it uses, are taken here: Adam with beta2
    0.98 and epsilon 1e-6, weight decay 0.01, warm-up over 24,000 steps to 6e-4, then linear decay (Liu et al. 2019, table 9).

Where it differs
    Dropout stays on to the end. The batch is 2,048 sequences of 512 tokens. The corpus is English Wikipedia through TFDS; the
    paper's is RoBERTa's 160 GB. The tokenizer is a byte-level BPE of the same size, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with BART base's size."""
    config = default_config()
    config.model.update(family="bart", num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072)
    config.model.update(
        vocab_size=50265, max_length=1024, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out
    config.objective.update(name="denoising", text_infilling_prob=0.3, mean_span_length=3.0, permute_sentence_prob=1.0)
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=512, packing=True)
    config.tokenizer.update(type="byte_bpe", vocab_size=50265)
    config.optimizer.update(name="adamw", learning_rate=6e-4, beta1=0.9, beta2=0.98, epsilon=1e-6)
    config.optimizer.update(weight_decay=0.01, clip_norm=0.0)
    config.schedule.update(name="linear", warmup_steps=24_000)
    config.train.update(num_steps=500_000, batch_size=2048, accumulation_steps=4)
    config.eval.update(every_steps=10_000, num_batches=20, num_samples=0)
    config.checkpoint.every_steps = 2_000
    config.logging.every_steps = 50
    return config

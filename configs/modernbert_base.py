"""ModernBERT base, 22 layers x 768, 149M parameters.

Command
    python -m lm_research.train --config=configs/modernbert_base.py --workdir=runs/modernbert_base

Hardware   16 accelerators with 16 GB or more; --config.train.accumulation_steps divides the large batch further.
Time       planned: 9.8 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/classification.py).

Sources
    Warner et al. 2024, arXiv:2412.13663, section 2 and appendix A: sizes and the pattern of global and local layers; rows of 1,024
    tokens that hold several documents, 30% of them masked, without next-sentence prediction; batch of 4,608; 1.7 trillion tokens;
    learning rate 8e-4, warm-up over 3 billion tokens, then constant; Adam's beta1 0.9, beta2 0.98, epsilon 1e-6, weight decay
    1e-5. Vocabulary of 50,368.

Where it differs
    The optimizer is AdamW where the paper has StableAdamW, which bounds updates instead of gradients; gradients are clipped
    to norm 1. The batch has its full size from the start, and no dropout follows attention. The schedule decays over the last
    tenth; the paper's decays later, after the context is extended to 8,192. The corpus is English Wikipedia through TFDS; the
    paper's is 2 trillion tokens of text and code. The tokenizer is a byte-level BPE of the same size, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe of the first phase with the base size."""
    config = default_config()
    config.model.update(family="modernbert", num_layers=22, hidden_size=768, num_heads=12, intermediate_size=1152)
    config.model.update(
        vocab_size=50368, max_length=1024, dropout_rate=0.0, attention_dropout_rate=0.0, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out
    config.objective.update(name="masked_lm", mask_rate=0.3, sentence_pair="none")
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=1024, packing=True)
    config.tokenizer.update(type="byte_bpe", vocab_size=50368)
    config.optimizer.update(name="adamw", learning_rate=8e-4, beta1=0.9, beta2=0.98, epsilon=1e-6)
    config.optimizer.update(weight_decay=1e-5, clip_norm=1.0)
    config.schedule.update(name="wsd", warmup_steps=636)
    config.train.update(num_steps=360_000, batch_size=4608, accumulation_steps=18)
    config.eval.update(every_steps=10_000, num_batches=10)
    config.checkpoint.every_steps = 1_000
    config.logging.every_steps = 50
    return config

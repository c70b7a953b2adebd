"""A Llama of a size for research, 12 layers x 768, 134M parameters.

Command
    python -m lm_research.train --config=configs/llama.py --workdir=runs/llama

Hardware   8 accelerators with 40 GB or more. With less memory raise --config.train.accumulation_steps.
Time       planned: 2.7 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: no published figure applies to a model of this size on this corpus.

Sources
    Touvron et al. 2023, arXiv:2302.13971, section 2: RMSNorm before each branch, gated SiLU, rotary positions, Adam with beta1 0.9,
    beta2 0.95, weight decay 0.1, clipping to norm 1, 2,000 steps of warm-up, a cosine to 10%, vocabulary of 32,000, rows of
    2,048 tokens.
    Depth, width and learning rate are those of GPT-3 small (Brown et al. 2020, table 2.1), and the feed-forward layer is 2,048 wide:
    two thirds of 4 x 768, as the paper has it.

Where it differs
    The paper's smallest model has 6.7 billion parameters and batches of 4 million tokens; here a batch has 0.5 million, and the
    run 20 billion. The corpus is English Wikipedia through TFDS. The tokenizer is a sentencepiece BPE with byte fallback,
    trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The paper's recipe with GPT-3 small's size."""
    config = default_config()
    config.model.update(family="llama", num_layers=12, hidden_size=768, num_heads=12, intermediate_size=2048)
    config.model.update(
        vocab_size=32000, max_length=2048, dropout_rate=0.0, attention_dropout_rate=0.0, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.name = "causal_lm"
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=2048)
    config.tokenizer.update(type="bpe", vocab_size=32000, keep_newlines=True)
    config.optimizer.update(name="adamw", learning_rate=6e-4, beta1=0.9, beta2=0.95, epsilon=1e-8)
    config.optimizer.update(weight_decay=0.1, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=2_000, end_ratio=0.1)
    config.train.update(num_steps=40_000, batch_size=256, accumulation_steps=4)
    config.eval.update(every_steps=2_000, num_batches=50)
    config.checkpoint.every_steps = 1_000
    config.logging.every_steps = 50
    config.mesh.preset = "fsdp"
    return config

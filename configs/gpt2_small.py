"""GPT-2 small, 12 layers x 768, 124M parameters: the recipe that all gpt2_*.py share.

Command
    python -m lm_research.train --config=configs/gpt2_small.py --workdir=runs/gpt2_small

Hardware   8 accelerators with 40 GB or more. With less memory raise --config.train.accumulation_steps (512 sequences
           are one step; it divides them into micro-batches).
Time       planned: 5.9 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: no published figure applies, because the paper's corpus was never released.

Sources
    Radford et al. 2019, Language Models are Unsupervised Multitask Learners: layers, widths, length 1,024, vocabulary
    50,257, batch of 512 sequences. Heads of width 64 and dropout 0.1 as in the released models' files.
    The paper gives neither learning rate nor warm-up nor optimizer settings. They are taken from Brown et al. 2020,
    GPT-3, arXiv:2005.14165, table 2.1 for the nearest size, and appendix B: learning rate 6e-4 (125M parameters),
    Adam with beta1 0.9, beta2 0.95, epsilon 1e-8, weight decay 0.1, clipping to norm 1, warm-up over the first 375
    million tokens (715 steps of 512 x 1,024 tokens), then a cosine to 10% of the peak.

Where it differs
    The number of steps is not published either: 100,000 (52 billion tokens) is ours; change --config.train.num_steps.
    GPT-3's cosine ends at 260 of its 300 billion tokens; here it ends with the run.
    The corpus is English Wikipedia through TFDS; WebText was never released. With some 5 billion tokens it is read
    about ten times over.
    The tokenizer is a sentencepiece BPE model of the same size, trained on that text and keeping line breaks; the
    paper's is a byte-level BPE.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with GPT-2 small's size."""
    config = default_config()
    config.model.update(family="gpt2", num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
    config.model.update(
        vocab_size=50257, max_length=1024, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.name = "causal_lm"
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=1024)
    config.tokenizer.update(type="bpe", vocab_size=50257, keep_newlines=True)
    config.optimizer.update(name="adamw", learning_rate=6e-4, beta1=0.9, beta2=0.95, epsilon=1e-8)
    config.optimizer.update(weight_decay=0.1, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=715, end_ratio=0.1)
    config.train.update(num_steps=100_000, batch_size=512, accumulation_steps=4)
    config.eval.update(every_steps=2_000, num_batches=50)
    config.checkpoint.every_steps = 1_000
    config.logging.every_steps = 50
    config.mesh.preset = "fsdp"
    return config

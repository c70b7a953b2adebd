"""GPT-3 small, 12 layers x 768, 125M parameters.

Command
    python -m lm_research.train --config=configs/gpt3_small.py --workdir=runs/gpt3_small

Hardware   8 accelerators with 40 GB or more. With less memory raise --config.train.accumulation_steps.
Time       planned: 1.7 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: no published figure applies, because the paper's corpus was never released.

Sources
    Brown et al. 2020, arXiv:2005.14165, table 2.1 and appendix B: sizes; rows of 2,048 tokens; batches of 0.5 million tokens;
    learning rate 6e-4 with 375 million tokens of warm-up, then a cosine to 10% over 260 of 300 billion tokens; Adam with beta1
    0.9, beta2 0.95, epsilon 1e-8; weight decay 0.1; clipping to norm 1. Vocabulary of GPT-2.

Where it differs
    Every layer is dense where the paper alternates with banded sparse attention. The cosine ends with the run. The batch does
    not grow over the first steps. The corpus is English Wikipedia through TFDS, some 5 billion tokens read sixty times over;
    name a larger one in --config.data.source. The tokenizer is a byte-level BPE of the same size, trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.gpt2_small import get_config as gpt2_small


def get_config() -> ConfigDict:
    """GPT-2 small's recipe with GPT-3's rows, batches and length of training."""
    config = gpt2_small()
    config.model.update(family="gpt3", max_length=2048, dropout_rate=0.0, attention_dropout_rate=0.0)
    config.data.max_length = 2048
    config.tokenizer.update(type="byte_bpe", vocab_size=50257, keep_newlines=False)
    config.schedule.warmup_steps = 715
    config.train.update(num_steps=572_205, batch_size=256)
    return config

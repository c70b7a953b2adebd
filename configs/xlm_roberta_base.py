"""XLM-R base, 12 layers x 768, 278M parameters, of which the vocabulary is 192M.

Command
    python -m lm_research.train --config=configs/xlm_roberta_base.py --workdir=runs/xlm_roberta_base

Hardware   64 accelerators with 32 GB, or fewer with a higher --config.train.accumulation_steps.
Time       planned: 29 days on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4
           --config.mesh.preset=fsdp --config.model.remat=names --config.train.accumulation_steps=16; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores (configs/finetune/classification.py).

Sources
    Conneau et al. 2019, arXiv:1911.02116, sections 3 and 5: RoBERTa's model and objective over 100 languages, languages drawn with
    alpha 0.3, a sentencepiece unigram vocabulary of 250,002, batch of 8,192 sequences, 1.5 million steps. The rest as
    roberta_base.py, since the paper gives no other settings.

Where it differs
    The corpus is the Wikipedias of six languages and scripts through TFDS, in shares of alpha 0.3; the paper's is CC-100. Add
    languages to --config.data.mixture. The tokenizer is trained on that text.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.roberta_base import get_config as roberta_base


def get_config() -> ConfigDict:
    """RoBERTa's recipe over several languages."""
    config = roberta_base()
    config.model.update(family="xlm_roberta", vocab_size=250_002)
    languages = ("en", "de", "es", "ru", "zh", "ar")
    config.data.mixture = ", ".join(f"{name}=tfds:wikipedia/20230601.{name}" for name in languages)
    config.data.mixture_alpha = 0.3
    config.tokenizer.update(type="unigram", vocab_size=250_002)
    config.train.num_steps = 1_500_000
    return config

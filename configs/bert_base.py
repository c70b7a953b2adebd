"""BERT-base, 12 layers x 768, 110M parameters: the recipe that all bert_*.py share.

Command
    python -m lm_research.train --config=configs/bert_base.py --workdir=runs/bert_base

Hardware   8 accelerators with 16 GB or more (the paper: 16 TPU chips, 4 days). With less memory add
           --config.train.accumulation_steps=4; the result stays the same up to rounding.
Time       planned: 13 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: after fine-tuning, the paper's scores on GLUE (configs/finetune/classification.py has some).

Sources
    Devlin et al. 2018, BERT, arXiv:1810.04805, section 3 and appendix A.2: sizes; batch of 256 sequences of 512
    tokens; 1,000,000 steps; Adam with learning rate 1e-4, beta1 0.9, beta2 0.999, L2 weight decay 0.01; warm-up over
    10,000 steps, then linear decay; dropout 0.1 on all layers; 15% of tokens masked; next-sentence prediction.
    The authors' code (google-research/bert, optimization.py): epsilon 1e-6, gradients clipped to norm 1.

Where it differs
    The paper trains 90% of the steps at length 128 and the last 10% at 512; this run trains at one length, 512,
    throughout (--config.data.max_length=128 is some five times cheaper, but leaves positions from 128 on untrained).
    The corpus is English Wikipedia through TFDS, without the BooksCorpus, which is no longer distributed.
    The tokenizer is a sentencepiece unigram model of the same size, 30,522, trained on that text; the paper's is a
    WordPiece vocabulary.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe with BERT-base's size."""
    config = default_config()
    config.model.update(family="bert", num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
    config.model.update(
        vocab_size=30522, max_length=512, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(name="masked_lm", mask_rate=0.15, sentence_pair="next_sentence", short_seq_prob=0.1)
    config.data.update(source="tfds:wikipedia/20230601.en", validation_fraction=0.001, max_length=512)
    config.tokenizer.update(type="unigram", vocab_size=30522)
    config.optimizer.update(name="adamw", learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-6)
    config.optimizer.update(weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_steps=10_000)
    config.train.update(num_steps=1_000_000, batch_size=256)
    config.eval.update(every_steps=10_000, num_batches=100)
    config.checkpoint.every_steps = 5_000
    config.logging.every_steps = 100
    return config

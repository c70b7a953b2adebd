"""The Transformer, base, 6 + 6 layers x 512, 63M parameters, trained on pairs of texts such as translations.

Commands
    python -m lm_research.train --config=configs/transformer_base.py --workdir=runs/transformer_base --config.data.source=PAIRS
    python -m lm_research.convert --source runs/transformer_base --average 5 --to native --output runs/transformer_average

    PAIRS are records with two fields: .tsv or .csv files with a header, .jsonl, .parquet, or tfds:NAME. The fields are called
    source and target, or as given by --config.objective.source_key and --config.objective.target_key.

Hardware   untried; meant for one accelerator with 40 GB, or four with 16 GB (the paper: 8 GPUs, 12 hours).
Time       planned: 0.36 hours on 16 chips of v5e by lm_research.plan, arithmetic with --topology=v5e:4x4; no TPU has been tried.
Result     planned: the paper's BLEU of 27.3 on WMT14's newstest2014, English to German (table 2).

Sources
    Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, table 3: sizes, dropout 0.1, 100,000 steps; section 5.1: a BPE
    vocabulary of 37,000 for both sides, about 25,000 tokens of sources and as many of targets a step (96 packed rows of
    256); section 5.3: Adam with beta1 0.9, beta2 0.98, epsilon 1e-9, 4,000 steps of warm-up to 1 / sqrt(512 * 4,000) = 6.99e-4;
    section 5.4: label smoothing 0.1; section 6.1: the mean of the last five checkpoints.

Where it differs
    After the warm-up the learning rate falls linearly to 0; the paper's falls with the root of the step.
    Checkpoints are 1,000 steps apart; the paper's were written every ten minutes.
    Clipping and weight decay are off, as in the paper. Texts longer than 256 tokens are cut.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """The recipe of the base model; `data.source` must be given by the command."""
    config = default_config()
    config.model.update(family="transformer", num_layers=6, hidden_size=512, num_heads=8, intermediate_size=2048)
    config.model.update(
        vocab_size=37000, max_length=256, dropout_rate=0.1, attention_dropout_rate=0.0, dtype="bfloat16"
    )
    config.model.scan_layers = False  # on TPUs a loop copies activations into stacks and out: a third of the step
    config.objective.update(name="seq2seq", label_smoothing=0.1)
    config.data.update(max_length=256, packing=True, validation_fraction=0.01)
    config.tokenizer.update(type="bpe", vocab_size=37000)
    config.optimizer.update(name="adamw", learning_rate=6.99e-4, beta1=0.9, beta2=0.98, epsilon=1e-9)
    config.optimizer.update(weight_decay=0.0, clip_norm=0.0)
    config.schedule.update(name="linear", warmup_steps=4_000)
    config.train.update(num_steps=100_000, batch_size=96)
    config.eval.update(every_steps=2_000, num_batches=50)
    config.checkpoint.update(every_steps=1_000, keep=5)
    config.logging.every_steps = 50
    return config

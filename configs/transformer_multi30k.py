"""A small Transformer, 4 + 4 layers x 128, 2.6M parameters, trained from random weights to translate Multi30k's image captions.

Commands
    python -m lm_research.train --config=configs/transformer_multi30k.py --workdir=runs/multi30k
    python -m lm_research.convert --source runs/multi30k --average 10 --to native --output runs/multi30k_average
    python -m lm_research.evaluate --model runs/multi30k_average --suite experiments/results/multi30k.py --output results/multi30k

    English to German; :de-en, :en-fr and :fr-en translate in other directions; MULTI30K_PAIR=de-en selects the suite's. The files (train.en.gz, val.en.gz, ...
    of https://github.com/multi30k/dataset, task 1, raw) are read from ../shared/data/public/mt/multi30k, or from other files given by
    --config.data.source=lines:SOURCES,TARGETS and --config.data.validation_source=lines:SOURCES,TARGETS.

Hardware   1 CPU core, 2 GB of memory.
Time       2 hours 9 minutes on one core of two that are shared with other work (Xeon with AMX, jax 0.12, where model.dtype=auto is bfloat16),
           and seven minutes to translate the three test parts.
Result     sacreBLEU 40.2 on test2016, 32.3 on test2017 and 27.8 on MSCOCO (40.6, 32.5 and 27.9 without case), beside the paper's tokenized BLEU
           of 41.0, 33.4 and 29.9 (from memory): row translation_multi30k of experiments/results/results.md.

Sources
    Wu et al. 2021, Good for Misconceived Reasons, arXiv:2105.14462, from memory: Transformer-Tiny (4 layers, width 128, feed-forward 256,
    4 heads, dropout 0.3), a joint BPE vocabulary of 10,000, 4,096 tokens a step, Adam with beta2 0.98, peak 5e-3 after 2,000 steps of
    warm-up, then falling with the root of the step, label smoothing 0.1, the mean of the last ten checkpoints, beams of 5.

Where it differs
    Texts are neither tokenized nor lowercased, and scores are sacreBLEU's (13a) of plain text, which differ from those of tokenized text.
    Training ends after 9,000 steps, 77 passes, where the paper's ends when the validation score has not risen for ten passes; a larger
    --config.train.num_steps continues a finished run. Rows of 48 tokens, which cut off next to nothing, because attention within rows of 128
    takes longer than it has use for captions of 15 tokens.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config
from lm_research.errors import ConfigError, suggest

FOLDER = "../shared/data/public/mt/multi30k"
PAIRS = ("en-de", "de-en", "en-fr", "fr-en")


def get_config(pair: str = "en-de") -> ConfigDict:
    """The recipe for one direction, such as en-de."""
    if pair not in PAIRS:
        raise ConfigError(f"Multi30k has no direction {pair!r} here. {suggest(pair, PAIRS)}")
    source, target = pair.split("-")
    config = default_config()
    config.model.update(family="transformer", num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256)
    config.model.update(vocab_size=10_000, max_length=128, dropout_rate=0.3, attention_dropout_rate=0.0)
    config.model.update(dtype="auto", scan_layers=False)  # a loop copies activations into stacks and out
    config.objective.update(name="seq2seq", label_smoothing=0.1)
    config.data.update(
        source=f"lines:{FOLDER}/train.{source}.gz,{FOLDER}/train.{target}.gz",
        validation_source=f"lines:{FOLDER}/val.{source}.gz,{FOLDER}/val.{target}.gz",
        max_length=48,
        packing=True,
    )
    config.tokenizer.update(type="bpe", vocab_size=10_000)
    config.optimizer.update(name="adamw", learning_rate=5e-3, beta1=0.9, beta2=0.98, epsilon=1e-8)
    config.optimizer.update(weight_decay=0.0, clip_norm=1.0)
    config.schedule.update(name="inverse_sqrt", warmup_steps=2_000)
    config.train.update(num_steps=9_000, batch_size=86)
    config.eval.update(every_steps=500)
    config.checkpoint.update(every_steps=200, keep=10)
    config.logging.every_steps = 100
    return config

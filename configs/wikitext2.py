"""A regularized decoder of words, 4 layers x 256, 11.7M parameters, on WikiText-2.

Command
    python -m lm_research.train --config=configs/wikitext2.py --workdir=runs/wikitext2

    The files are read from ../shared/data/public/lm/wikitext2, or from others given by --config.data.source=FILE and
    --config.data.validation_source=FILE. The perplexity is that of all 217,646 tokens of the validation part, <eos> of each line included;
    :test gives that of the 245,569 tokens of the test part, once, at the end, with nothing chosen by it.

Hardware   one accelerator; 2 CPU cores and 3 GB of memory with patience.
Time       planned: about 10 hours on two cores with units for bfloat16 (model.dtype=auto), 19 on one, estimated from the processor time
           of ten of 20,400 steps.
Result     planned: beside AWD-LSTM's test perplexity of 65.6 (salesforce/awd-lstm-lm at 19470c8, README) and 99.3 of an
           LSTM (Grave et al. 2016, arXiv:1612.04426, from memory). experiments/results/pages/lm_wikitext2_ngram.md has n-gram models.

Sources
    Merity et al. 2016, arXiv:1609.07843: the corpus, its vocabulary of 33,278 words, <unk> and <eos>. Merity et al. 2017, arXiv:1708.02182, from
    memory: tied tables, rows of 70 words, dropout of words, states and outputs. Size, rate and dropout are ours, and no result of them is known.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config
from lm_research.errors import ConfigError, suggest

FILES = "../shared/data/public/lm/wikitext2/wiki"
PARTS = ("valid", "test")


def get_config(part: str = "valid") -> ConfigDict:
    """The recipe, with the perplexity of one part."""
    if part not in PARTS:
        raise ConfigError(f"WikiText-2 has no held-out part {part!r}. {suggest(part, PARTS)}")
    config = default_config()
    config.objective.name = "causal_lm"
    config.model.update(
        family="gpt2", num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024, max_length=128
    )
    config.model.vocab_size = 33_278
    config.model.update(dropout_rate=0.4, attention_dropout_rate=0.2, scan_layers=False, dtype="auto")
    config.data.update(source=f"{FILES}.train.tokens.xz", validation_source=f"{FILES}.{part}.tokens.xz")
    config.data.update(document_separator="file", max_length=128)
    config.tokenizer.update(type="word", vocab_size=33_278, keep_newlines=True)
    config.optimizer.update(learning_rate=1e-3, beta2=0.98, weight_decay=0.1, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=500, end_ratio=0.05)
    config.train.update(num_epochs=40.0, batch_size=32)
    config.eval.update(every_steps=1_000 if part == "valid" else 0, num_samples=0)
    config.checkpoint.update(every_steps=500, keep_best=int(part == "valid"))
    config.logging.every_steps = 100
    return config

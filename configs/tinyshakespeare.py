"""A GPT-2 of characters, 4 layers x 128, 0.8M parameters, on tinyshakespeare: nanoGPT's recipe for a CPU; :gpu is its larger one.

Commands
    python -m experiments.results.sets tinyshakespeare runs/sets/tinyshakespeare
    python -m lm_research.train --config=configs/tinyshakespeare.py --workdir=runs/tinyshakespeare \
        --config.data.source=runs/sets/tinyshakespeare/train.txt --config.data.validation_source=runs/sets/tinyshakespeare/test.txt

Hardware   2 CPU cores, 1 GB of memory; :gpu one GPU.
Time       two to five minutes on two cores shared with other work.
Result     1.878 ± 0.019 nats a character of held-out text over three seeds (row lm_tinyshakespeare of experiments/results/results.md), beside
           1.88 in karpathy/nanoGPT at 0110f3c, README. :gpu is planned: 1.47 there, not run here.

Sources
    karpathy/nanoGPT, README.md and config/train_shakespeare_char.py: 2,000 steps of 12 rows of 64 characters, AdamW with peak 1e-3 and beta2
    0.99, 100 steps of warm-up, a cosine to a tenth, no dropout; the first nine tenths of the text to train, the rest held out. The decay of
    0.1 and the clipping to norm 1 are the defaults of its train.py (from memory). :gpu has 6 layers x 384, 5,000 steps of 64 rows of 256
    characters, and dropout 0.2.

Where it differs
    A vocabulary of 256 bytes and 5 special tokens instead of the text's 65 characters. The loss is that of all held-out characters once, not of
    randomly drawn rows. Linear layers and norms have biases, as in GPT-2.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config
from lm_research.errors import ConfigError, suggest


def get_config(size: str = "cpu") -> ConfigDict:
    """The recipe of one size: cpu or gpu."""
    sizes = ("cpu", "gpu")
    if size not in sizes:
        raise ConfigError(f"tinyshakespeare has no size {size!r}. {suggest(size, sizes)}")
    config = default_config()
    config.objective.name = "causal_lm"
    config.model.update(family="gpt2", num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_length=64)
    config.model.vocab_size = 261
    config.model.update(dropout_rate=0.0, attention_dropout_rate=0.0, scan_layers=False)
    config.data.update(document_separator="file", max_length=64)
    config.tokenizer.update(type="byte_bpe", vocab_size=261, keep_newlines=True)
    config.optimizer.update(learning_rate=1e-3, beta2=0.99, weight_decay=0.1, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=100, end_ratio=0.1)
    config.train.update(num_steps=2_000, batch_size=12)
    config.eval.update(every_steps=0, num_samples=0)
    config.checkpoint.update(every_steps=500)
    config.logging.every_steps = 100
    if size == "gpu":
        config.model.update(num_layers=6, hidden_size=384, num_heads=6, intermediate_size=1536, max_length=256)
        config.model.update(dropout_rate=0.2, attention_dropout_rate=0.2)
        config.data.max_length = 256
        config.train.update(num_steps=5_000, batch_size=64)
        config.eval.every_steps = 250
    return config

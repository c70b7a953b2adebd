"""A GPT-2 of 8 layers x 256, 8.4M parameters, within the rules of BabyLM: a corpus of 10 or 100 million words, read ten times at most.

Commands
    python -m lm_research.train --config=configs/babylm/gpt2.py --config.data.source=FOLDER --workdir=runs/babylm_gpt2

    FOLDER has the track's training files (*.txt), of Strict-Small; :strict is the track of 100 million words. Where blank lines do not
    divide them into documents, set --config.data.document_separator=line: whole documents are held out. A text of more words and a run of
    more passes are refused (data.max_words, train.max_epochs). The tokenizer is trained on the same text, as the rules demand.

Hardware   one accelerator, or CPU cores with patience.
Time       planned: about 11 hours for 10 million words on two CPU cores, from the 3,000 to 3,900 tokens a second of 30 steps (jax 0.12, bfloat16):
           row babylm_gpt2 of experiments/results/results.md.
Result     planned: BLiMP beside 65.08 of the GPT-2 that the organizers of 2026 trained on Strict-Small (babylm-org/babylm-eval at 45fe2c1).

Sources
    BabyLM 2026 (babylm.github.io at 12e16f8): the tracks and their limits. Huebner et al. 2021 (BabyBERTa), from memory: 8 layers x 256 with
    8 heads, feed-forward 1,024, a vocabulary of 8,192. Rate, batch and rows are ours, chosen before the first run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config
from lm_research.errors import ConfigError, suggest

TRACKS = {"strict_small": 10_000_000, "strict": 100_000_000}  # words


def get_config(track: str = "strict_small") -> ConfigDict:
    """The recipe within the limits of a track."""
    if track not in TRACKS:
        raise ConfigError(f"BabyLM has no track {track!r} here. {suggest(track, TRACKS)}")
    config = default_config()
    config.model.update(family="gpt2", num_layers=8, hidden_size=256, num_heads=8, intermediate_size=1024)
    config.model.update(max_length=128, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="auto", scan_layers=False)
    config.objective.name = "causal_lm"
    config.data.update(max_words=TRACKS[track], validation_fraction=0.01, max_length=128)
    config.tokenizer.update(type="byte_bpe", vocab_size=8192)
    config.optimizer.update(learning_rate=1e-3, beta2=0.98, weight_decay=0.1, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_ratio=0.05, end_ratio=0.05)
    config.train.update(num_epochs=10.0, max_epochs=10.0, batch_size=64)
    config.eval.update(every_steps=1_000, num_samples=0)
    config.checkpoint.every_steps = 250
    config.logging.every_steps = 50
    return config

"""A RoBERTa of 8 layers x 256, 8.4M parameters, within the rules of BabyLM: a corpus of 10 or 100 million words, read ten times at most.

Commands
    python -m lm_research.train --config=configs/babylm/roberta.py --config.data.source=FOLDER --workdir=runs/babylm_roberta

    FOLDER has the track's training files (*.txt), of Strict-Small; :strict is the track of 100 million words. Where blank lines do not
    divide them into documents, set --config.data.document_separator=line: whole documents are held out. A text of more words and a run of
    more passes are refused (data.max_words, train.max_epochs). The tokenizer is trained on the same text, as the rules demand.

Hardware   one accelerator, or CPU cores with patience.
Time       planned: about 8 hours for 10 million words on two CPU cores, from the 4,000 to 5,000 tokens a second of 30 steps (jax 0.12, bfloat16):
           row babylm_roberta of experiments/results/results.md.
Result     planned: BLiMP by pseudo-log-likelihood beside 71.7, the best of the baselines of 2025 (GPT-BERT; babylm/evaluation-pipeline-2025 at
           bf55c11), and Zorro.

Sources
    BabyLM 2026 (babylm.github.io at 12e16f8): the tracks and their limits. Huebner et al. 2021 (BabyBERTa), from memory: 8 layers x 256 with
    8 heads, feed-forward 1,024, a vocabulary of 8,192, 15% of tokens predicted. Rate, batch and rows are ours, chosen before the first run:
    rows hold several documents, where the paper's have one sentence each.
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
    config.model.update(family="roberta", num_layers=8, hidden_size=256, num_heads=8, intermediate_size=1024)
    config.model.update(max_length=128, dropout_rate=0.1, attention_dropout_rate=0.1, dtype="auto", scan_layers=False)
    config.objective.update(name="masked_lm", mask_rate=0.15, sentence_pair="none")
    config.data.update(max_words=TRACKS[track], validation_fraction=0.01, max_length=128, packing=True)
    config.tokenizer.update(type="byte_bpe", vocab_size=8192)
    config.optimizer.update(learning_rate=1e-3, beta2=0.98, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.05)
    config.train.update(num_epochs=10.0, max_epochs=10.0, batch_size=64)
    config.eval.update(every_steps=1_000, num_samples=0)
    config.checkpoint.every_steps = 250
    config.logging.every_steps = 50
    return config

"""Translation from nothing: Multi30k, German to English, with a small Transformer."""

from __future__ import annotations

from experiments.results.row import READ
from experiments.results.training import Published
from experiments.results.translation import MULTI30K, Translation

ROW = Translation(
    MULTI30K,
    "de-en",
    title="Multi30k de-en: a Transformer of 4 layers x 128 from random weights",
    published={"test2016": Published(36.52, 0.005, READ, at_least=True)},
    source="bentrevett/pytorch-seq2seq at b3cd54c, legacy/6 - Attention is All You Need.ipynb: a Transformer of 3 layers x 256 after ten passes, BLEU of lower-cased, tokenized text",
    why="Planned: about 90 minutes on one core. The recipe of translation_multi30k with 6,000 instead of 9,000 steps. Theirs is a tutorial, with words instead of pieces, no beams and no "
    "averaged checkpoints; its score is of lower-cased and tokenized text, ours sacreBLEU's of plain text with its case. No score of the paper of translation_multi30k is known for this direction.",
    steps=6_000,
).row()

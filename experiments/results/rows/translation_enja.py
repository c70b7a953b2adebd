"""Translation from nothing: small_parallel_enja, English to Japanese, with a small Transformer."""

from __future__ import annotations

from experiments.results.row import READ
from experiments.results.training import Published
from experiments.results.translation import ENJA, Translation

ROW = Translation(
    ENJA,
    "en-ja",
    title="small_parallel_enja en-ja: a Transformer of 4 layers x 128 from random weights",
    published={"test": Published(37.0, 0.5, READ, at_least=True)},
    source="refiute/primitiv_practice at 71a7b43, README: about 37, an LSTM of 512 units with attention, without beams",
    why="Planned: about 95 minutes on one core. The recipe of translation_multi30k with 6,000 steps, on 50,000 pairs of 4 to 16 words. Both scores are of the 500 test sentences as the corpus "
    "divides them into words. Theirs is over a vocabulary of 5,000 words, in which the rare words of "
    "reference and translation count as one word.",
    steps=6_000,
).row()

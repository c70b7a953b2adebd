"""Translation from nothing: Multi30k with a small Transformer."""

from __future__ import annotations

from experiments.results.row import Row

ROW = Row(
    title="Multi30k en-de: a Transformer of 4 layers x 128 from random weights",
    source="Wu et al. 2021, from memory: BLEU 41.0 on test2016 and 33.4 on test2017",
    why="Planned: configs/transformer_multi30k.py has the recipe and the commands that train, average, translate and score; 30 steps were "
    "run, in which the training loss fell from 8.9 to 6.7 nats.",
    command="python -m lm_research.train --config=configs/transformer_multi30k.py --workdir=runs/multi30k",
    seeds=(0,),
)

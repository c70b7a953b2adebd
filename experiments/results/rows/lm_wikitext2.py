"""Word-level language modeling on WikiText-2."""

from __future__ import annotations

import math
import pathlib

from experiments.results.row import MEMORY, READ, Figure, Row, public
from experiments.results.training import Published, figure, train, write_curve

SEEDS = (0,)


def measure(folder: pathlib.Path) -> list[Figure]:
    """Train, and score the test part once, at the end."""
    files = {part: public(f"lm/wikitext2/wiki.{part}.tokens.xz") for part in ("train", "test")}
    keys = {"data__source": files["train"], "data__validation_source": files["test"]}
    run = folder / "seed_0"
    scores = train(run, "configs/wikitext2.py:test", SEEDS[0], **keys, logging__trackers="none")["eval"]
    write_curve(folder, [run])
    perplexity = math.exp(scores["eval_lm_loss_nats"])
    return [
        figure("test perplexity, beside AWD-LSTM", [perplexity], Published(65.6, 0.05, READ, at_most=True)),
        figure("test perplexity, beside an LSTM", [perplexity], Published(99.3, 0.05, MEMORY, at_most=True)),
    ]


ROW = Row(
    title="WikiText-2: test perplexity of words",
    source="salesforce/awd-lstm-lm at 19470c8, README: 65.6 for AWD-LSTM; 99.3 for an LSTM (Grave et al. 2016, from memory)",
    why="Planned: about 10 hours on two cores with units for bfloat16, 19 on one, estimated from the processor time of ten of 20,400 steps. The number of tokens is the published one (exact_wikitext2), and n-gram models are beside "
    "(lm_wikitext2_ngram); the recipe of configs/wikitext2.py has not been run to its end.",
    measure=measure,
    seeds=SEEDS,
)

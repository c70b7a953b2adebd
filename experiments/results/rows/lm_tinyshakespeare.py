"""Character-level language modeling of tinyshakespeare with nanoGPT's recipe for a CPU."""

from __future__ import annotations

import pathlib

from experiments.results.row import READ, Figure, Row
from experiments.results.sets import SETS
from experiments.results.training import Published, figure, train, write_curve

SEEDS = (0, 1, 2)


def measure(folder: pathlib.Path) -> list[Figure]:
    """Train with each seed; the loss is that of all held-out characters after the last step."""
    data = folder / "set"
    SETS["tinyshakespeare"](data)
    keys = {"data__source": data / "train.txt", "data__validation_source": data / "test.txt"}
    runs = [folder / f"seed_{seed}" for seed in SEEDS]
    values = [
        train(run, "configs/tinyshakespeare.py", seed, **keys, logging__trackers="none")["eval"]["eval_lm_loss_nats"]
        for run, seed in zip(runs, SEEDS, strict=True)
    ]
    write_curve(folder, runs)
    return [figure("held-out loss, nats a character", values, Published(1.88, 0.005, READ, at_most=True))]


ROW = Row(
    title="tinyshakespeare: nanoGPT's recipe for a CPU",
    source="karpathy/nanoGPT at 0110f3c, README: a loss of 1.88 after about three minutes on a laptop's CPU",
    why="The same recipe and number of steps; a seed took two to five minutes on two cores shared with other work. Theirs is the mean of 20 random "
    "batches of 12 rows, ours that of all held-out characters.",
    measure=measure,
    seeds=SEEDS,
)

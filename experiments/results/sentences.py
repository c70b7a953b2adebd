"""Rows that train configs/sentence_classifier.py on one set each; --only classify selects all of them."""

from __future__ import annotations

import dataclasses
import pathlib

from experiments.results.row import MEMORY, READ, Figure, Row
from experiments.results.sets import SETS
from experiments.results.training import Published, figure, train, write_curve

README = "harvardnlp/sent-conv-torch at d61ded0, README: a CNN over random word vectors; Kim 2014, from memory"
SPREAD = 1.7  # its only published deviation, over 5 runs of SST-5
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Classification:
    """A set and its published accuracies in percent.

    Attributes:
      name: argument of the config.
      title: what is learned.
      torch: accuracy of sent-conv-torch.
      kim: accuracy of Kim 2014.
      why: why ours differs.
      parts: keys of SETS, by seed.
    """

    name: str
    title: str
    torch: float
    kim: float
    why: str
    parts: dict[int, str]

    def measure(self, folder: pathlib.Path) -> list[Figure]:
        """Train with each seed, and score the model after the last step on the test part."""
        values, runs = [], []
        for seed, part in self.parts.items():
            data = folder / part
            SETS[part](data)
            keys = {"task__train": data / "train.jsonl", "task__validation": data / "test.jsonl"}
            runs.append(folder / f"seed_{seed}")
            config = f"configs/sentence_classifier.py:{self.name}"
            found = train(runs[-1], config, seed, **keys, data__cache_dir=folder / "cache", logging__trackers="none")
            values.append(100 * found["validation"]["eval_accuracy"])
        write_curve(folder, runs[:3])
        return [
            figure("accuracy, %, beside sent-conv-torch", values, Published(self.torch, SPREAD, READ)),
            figure("accuracy, %, beside Kim 2014", values, Published(self.kim, SPREAD, MEMORY)),
        ]

    def row(self) -> Row:
        """Make the row."""
        return Row(self.title, README, self.why, self.measure, seeds=tuple(self.parts), group="classify")

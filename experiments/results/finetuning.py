"""Rows that fine-tune all-MiniLM-L6-v2 (a BERT of 6 layers x 384, 22.7M parameters) on one set each; --only glue selects all of them.

Nothing is selected among runs on the scored part: settings were fixed before the first run, but ATIS' rows were run again with the
passes of the published result and twice the rate; the model after the last step is scored. Where
references/trainer.json has scores of transformers' Trainer with equal settings (make_trainer_reference.py), ours must be equal to them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics

from experiments.results.minilm import model
from experiments.results.row import COMPUTED, Figure, Row
from experiments.results.sets import SETS
from experiments.results.training import Published, figure, interval, train, write_curve
from lm_research.common.documents import Object, read_json

SEEDS = (0, 1, 2)
TRAINER = pathlib.Path(__file__).parent / "references" / "trainer.json"
BESIDE = ", beside Trainer"


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """A set and how it is learned.

    Attributes:
      name: a key of SETS.
      title: what is learned.
      scores: name in the summary (without eval_) -> published score in percent.
      source: of the published scores.
      why: why they differ.
      task: classification, tagging, multiple_choice or question_answering: the config.
      epochs: passes over the training part.
      rate: the learning rate.
      settings: further keys of the config, as in `train`.
      left_out: records of the scored part that are not in its file, all counted as wrong.
      floor: a simple method and its score in percent, computed from the data, which the first of ours must reach.
    """

    name: str
    title: str
    scores: dict[str, Published]
    source: str
    why: str
    task: str = "classification"
    epochs: float = 3.0
    rate: float = 5e-5
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    left_out: int = 0
    floor: tuple[str, float] | None = None

    def measure(self, folder: pathlib.Path) -> list[Figure]:
        """Train with each seed, and score."""
        data, weights = folder / "set", model()
        SETS[self.name](data)
        end = "conll" if (data / "train.conll").exists() else "jsonl"
        keys: dict[str, object] = {
            "task__train": data / f"train.{end}",
            "task__validation": data / f"test.{end}",
            "train__init_from": weights,
            "train__num_epochs": self.epochs,
            "optimizer__learning_rate": self.rate,
            "data__cache_dir": folder / "cache",
            "logging__trackers": "none",
        }
        if self.task == "tagging" and "task__column" not in self.settings:
            # ATIS and CoNLL-2000 have tags that only their test parts have: they count as wrong.
            keys["task__labels"] = ",".join(sorted(tags(data / f"train.{end}") | tags(data / f"test.{end}")))
        found = []
        for seed in SEEDS:
            run = folder / f"seed_{seed}"
            found.append(train(run, f"configs/finetune/{self.task}.py", seed, **keys | self.settings)["validation"])
        write_curve(folder, [folder / f"seed_{seed}" for seed in SEEDS])
        values = {name: [100 * self._kept(name, one, data) for one in found] for name in self.scores}
        figures = [figure(f"{name} x 100", values[name], self.scores[name]) for name in values]
        if self.floor:
            name, own = next(iter(values.items()))
            goal = Published(self.floor[1], origin=COMPUTED, at_least=True)
            figures.append(figure(f"{name} x 100, beside {self.floor[0]}", own, goal))
        return self.beside_trainer(figures)

    def beside_trainer(self, figures: list[Figure]) -> list[Figure]:
        """Put the comparison of mean scores with those of Trainer, if it was run with these settings, before the figures; an earlier one goes."""
        fix = "Remove it; the rows are then compared with published values only."
        stored = (read_json(TRAINER, Object, fix=fix) if TRAINER.is_file() else {}).get(self.name, {})
        figures, found = [one for one in figures if not one.name.endswith(BESIDE)], []
        if (stored.get("epochs"), stored.get("learning_rate")) != (self.epochs, self.rate):
            return figures
        for metric, scores in stored["scores"].items():
            theirs = [100 * score for score in scores]
            own = next(one for one in figures if one.name == f"{metric} x 100")
            tolerance = math.hypot(own.interval, interval(theirs))
            mean = statistics.fmean(theirs)
            found.append(Figure(own.name + BESIDE, own.ours, mean, tolerance, COMPUTED, interval=own.interval))
        return found + figures

    def _kept(self, name: str, scores: dict[str, float], data: pathlib.Path) -> float:
        """Return a score, an accuracy as a fraction of all records, those that were left out included."""
        if not self.left_out:
            return scores[f"eval_{name}"]
        kept = len((data / "test.jsonl").read_text(encoding="utf-8").splitlines())
        return scores[f"eval_{name}"] * kept / (kept + self.left_out)

    def row(self) -> Row:
        """Make the row."""
        source = f"{self.source}; Trainer of transformers, where a figure says so: references/trainer.json"
        return Row(self.title, source, self.why, self.measure, seeds=SEEDS, group="glue")


def tags(path: pathlib.Path) -> set[str]:
    """Return the tags of a file of tagged words, .jsonl or the last column of .conll."""
    lines = filter(str.strip, path.read_text(encoding="utf-8").splitlines())
    if path.suffix == ".jsonl":
        return {tag for line in lines for tag in json.loads(line)["tags"]}
    return {line.split()[-1] for line in lines}

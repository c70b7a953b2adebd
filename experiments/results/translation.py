"""Rows that train configs/transformer_multi30k.py from random weights on one corpus and direction each; --only translation selects all."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from experiments.results.row import Figure, Row, public
from experiments.results.training import Published, command, figure, train, write_curve

SEEDS = (0,)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A folder of files PART.LANGUAGE.gz, whose lines are translations of each other.

    Attributes:
      folder: in the public data.
      held_out: the part that is scored during training.
      tests: name of a test part in tables -> its name in the folder.
    """

    folder: str
    held_out: str
    tests: dict[str, str]

    def lines(self, part: str, pair: str) -> str:
        """Return the data source of a part in a direction, such as en-de."""
        return "lines:" + ",".join(f"{public(self.folder)}/{part}.{language}.gz" for language in pair.split("-"))

    def suite(self, pair: str) -> list[dict[str, Any]]:
        """List the tasks of a suite that translates the test parts with five beams."""
        return [
            {
                "name": name,
                "task": "seq2seq",
                "data": self.lines(part, pair),
                "text_key": "source",
                "label_key": "target",
                "generation": {"num_beams": 5, "length_penalty": 1.0},
                "metric": "bleu",
            }
            for name, part in self.tests.items()
        ]


MULTI30K = Corpus(
    "mt/multi30k",
    "val",
    {"test2016": "test_2016_flickr", "test2017": "test_2017_flickr", "mscoco2017": "test_2017_mscoco"},
)
ENJA = Corpus("mt/small_parallel_enja", "dev", {"test": "test"})


@dataclasses.dataclass(frozen=True)
class Translation:
    """A corpus, a direction, and its published scores.

    Attributes:
      corpus: what is read.
      pair: the direction, such as en-de.
      title: the question.
      published: test part -> BLEU; the other parts are not translated.
      source: of the published scores.
      why: why ours differ.
      steps: of training; None is the config's number.
    """

    corpus: Corpus
    pair: str
    title: str
    published: dict[str, Published]
    source: str
    why: str
    steps: int | None = None

    def measure(self, folder: pathlib.Path) -> list[Figure]:
        """Train, average the last ten checkpoints, translate with beams, and score."""
        run, mean, suite = folder / "seed_0", folder / "average", folder / "suite.json"
        keys: dict[str, object] = {"train__num_steps": self.steps} if self.steps else {}
        sources = [self.corpus.lines(part, self.pair) for part in ("train", self.corpus.held_out)]
        keys |= {"data__source": sources[0], "data__validation_source": sources[1], "logging__trackers": "none"}
        train(run, "configs/transformer_multi30k.py", SEEDS[0], **keys)
        write_curve(folder, [run])
        if not mean.exists():  # an interrupted row continues after it
            command("convert", "--source", run, "--average", 10, "--to", "native", "--output", mean)
        tasks = [task for task in self.corpus.suite(self.pair) if task["name"] in self.published]
        suite.write_text(json.dumps({"tasks": tasks}))
        command("evaluate", "--model", mean, "--suite", suite, "--output", folder / "scores")
        found = json.loads((folder / "scores" / "results.json").read_text())["tasks"]
        return [
            figure(f"BLEU, {part}", [found[part]["scores"]["bleu"]["mean"]], theirs)
            for part, theirs in self.published.items()
        ]

    def row(self) -> Row:
        """Make the row."""
        return Row(self.title, self.source, self.why, self.measure, seeds=SEEDS, group="translation")

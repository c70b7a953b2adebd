"""A fine-tuned model on the records of a task of lm_research.tasks: rows, outputs and predictions are that task's own.

Legend: C classes.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.config import Config, resolve
from lm_research.config.run_files import read_config
from lm_research.data.sampler import BatchBuilder
from lm_research.data.verify import Verification
from lm_research.errors import ConfigError, DataError
from lm_research.evaluation.suite import Entry
from lm_research.interop import native_checkpoint
from lm_research.parallel.batches import local_rows, to_global
from lm_research.pretrained import LanguageModel, from_pretrained
from lm_research.tasks import export
from lm_research.tasks.base import TASKS
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.tagging import COUNT_AS_O
from lm_research.training.step import make_eval_step

LOG = logging.getLogger("lm_research")
_OF_CLASSES = ("classification", "tagging")
# How a run wrote its texts, and which tags it read, how.
_REMEMBERED = (
    "source_prefix",
    "generation",
    "decoder_start",
    "source_language",
    "target_language",
    "column",
    "doc_stride",
    "long_sentences",
)
_LONGEST = 512  # tokens of a row where neither the run nor the model says


class TaskPredictor:
    """One model on one task.

    Attributes:
      labels: names of the classes in the model's order, () where labels are values.
      num_batches: batches of the whole task.
    """

    def __init__(
        self, entry: Entry, path: pathlib.Path, workdir: pathlib.Path, batch_size: int, dtype: str | None, mesh: Any
    ) -> None:
        """Reads the model and the records; raises a UserError where they do not fit."""
        exported = path / "model"  # what a fine-tuning run leaves beside its checkpoints: the best of them
        directory = exported if native_checkpoint.is_run(path) and exported.is_dir() else path
        kind = TASKS[entry.task]
        lm = from_pretrained(directory, dtype=dtype, mesh=mesh)
        config = task_config(entry, lm, path, directory, batch_size)
        if lm.head != kind.head(config):
            raise ConfigError(
                f"Task {entry.name} judges a fine-tuned model with head {kind.head(config)!r}, but {directory} has head {lm.head!r}. "
                f"Fine-tune it first: python -m lm_research.train --config=configs/finetune/{entry.task}.py ..."
            )
        names = class_names(entry, lm, directory)
        try:
            self.corpus = open_labeled(config, workdir, kind.reader(config), _warn_of_cuts, names)
        except DataError as error:
            unknown = (
                f"which {directory} does not know (give `labels:`, in its classes' order, if it names them otherwise)"
            )
            raise DataError(str(error).replace("which no training record has", unknown)) from error
        Verification(self.corpus.stores, config.data.verify, _warn_of_cuts)
        self.labels = tuple(self.corpus.labels)
        self.task = kind(config, self.corpus)
        if entry.task == "classification":
            check_outputs(entry, lm, directory, kind.num_labels(config, self.corpus))
        examples = self.task.examples(self.corpus.validation, "final")
        self.feed = BatchBuilder(examples, batch_size, 0, local_rows(mesh, batch_size), None)
        self.num_batches = ceil_div(examples.num_examples, batch_size)
        self.params, self.mesh = lm.params, mesh
        self.step = make_eval_step(self.task, lm.definition, self.corpus.tokenizer.token_bytes, mesh)

    def batch(self, number: int) -> dict[str, Any]:
        """What the task keeps of a batch; arrays that may still be on their way."""
        outputs = self.step(self.params, to_global(self.mesh, self.feed(number)))[1]
        if "chosen_BL" in outputs:  # which say it all, and are so much smaller
            outputs = {name: x for name, x in outputs.items() if name != "logits"}
        return outputs

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """A prediction for each record, as a fine-tuning run writes them."""
        yield from export.predictions(self.task, "validation", outputs)


def _warn_of_cuts(line: str) -> None:
    """Of what is said about the records, what changes the scores."""
    if COUNT_AS_O in line:
        LOG.warning(line)


def task_config(
    entry: Entry, lm: LanguageModel, path: pathlib.Path, directory: pathlib.Path, batch_size: int
) -> Config:
    """The config that a fine-tuning run on these records would have, as far as reading and scoring them goes.

    Raises:
      ConfigError: the model has no tokenizer, or rows would be longer than it can read.
    """
    if lm.tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer, so it cannot read texts. Put its files there.")
    longest, length = lm.definition.arch.max_length or 0, entry.max_length
    own = read_config(path / "config.json") if native_checkpoint.is_run(path) else {}
    if not length and own:
        length = own["data"]["max_length"]
    if not length:
        length = min(longest or _LONGEST, lm.tokenizer.max_length or _LONGEST, _LONGEST)
    if longest and length > longest:
        raise ConfigError(
            f"Task {entry.name}: max_length is {length}, but {path} has positions for {longest}. Lower it in the suite."
        )
    names = ("text_key", "pair_key", "label_key", "problem_type", "label_separator", "metric")
    given = {name: getattr(entry, name) for name in names} | {"train": entry.data, "validation": entry.data}
    learned = own["task"] if own and own["task"] and own["task"]["name"] == entry.task else {}
    given |= {name: learned[name] for name in _REMEMBERED if name in learned} | {"predict_with_generate": "each"}
    if lm.embedding is not None and lm.embedding.supported:
        said = lm.embedding
        given |= {"pooling": said.pooling, "normalize": said.normalize, "prompt": said.prompt()}
        given |= {"similarity": said.similarity}
    given["labels"], keys = class_names(entry, lm, path), TASKS.keys(entry.task)
    return resolve(
        {
            "task": {"name": entry.task} | {name: value for name, value in given.items() if name in keys} | entry.more,
            "data": {"max_length": length},
            "model": {"max_length": max(length, longest)},
            "train": {"batch_size": batch_size, "init_from": str(directory)},
            "tokenizer": {"path": str(lm.tokenizer.name)},
            "objective": {
                name: own["objective"][name]
                for name in ("target_length", "decoder_start")
                if own and name in own["objective"]
            },
        }
    )


def check_outputs(entry: Entry, lm: LanguageModel, directory: pathlib.Path, needed: int) -> None:
    """Raises a ConfigError if a model's outputs are not what the records have: as many, and values where those are values."""
    count, problem = lm.definition.head.num_labels, lm.config.to_dict().get("problem_type")
    if needed != count:
        raise ConfigError(
            f"Task {entry.name}: problem_type={entry.problem_type} has {needed} outputs in {entry.data}, but {directory} has {count}. Name the right "
            "field in label_key, or set problem_type."
        )
    if problem and (problem == "regression") != (entry.problem_type == "regression"):
        raise ConfigError(
            f"Task {entry.name}: {directory} says problem_type={problem}, but the suite says {entry.problem_type}. Set it to regression where the "
            "model gives values, and to single_label or multi_label where it does not."
        )


def class_names(entry: Entry, lm: LanguageModel, path: pathlib.Path) -> tuple[str, ...] | None:
    """What the data call the model's classes, in its order: as the suite says, else as the model does, else numbers.

    None where the head does not choose among classes.
    """
    if entry.task not in _OF_CLASSES:
        return None
    count = lm.definition.head.num_labels
    if entry.problem_type == "regression":
        return ()
    if entry.labels:
        if len(entry.labels) != count:
            raise ConfigError(
                f"Task {entry.name} names {len(entry.labels)} labels, but {path} has {count} classes. Name each of them, in order."
            )
        return entry.labels
    named = lm.config.to_dict().get("id2label") or {}
    names = tuple(str(named.get(str(i), named.get(i, f"LABEL_{i}"))) for i in range(count))
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return tuple(map(str, range(count))) if generic else names

"""Predictions of a fine-tuned model for a task of lm_research.tasks, which reads the records and defines the predictions."""

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
from lm_research.tasks.labels import NOT_TRAINED
from lm_research.tasks.tagging import COUNT_AS_O
from lm_research.training.step import make_eval_step

LOG = logging.getLogger("lm_research")
_CLASS_TASKS = ("classification", "tagging")
# Keys of config.task that are taken from the fine-tuning run.
_RUN_KEYS = (
    *("source_prefix", "generation", "decoder_start", "source_language", "target_language"),
    *("column", "doc_stride", "long_sentences", "label_threshold"),
)
_DEFAULT_LENGTH = 512  # tokens of a sequence, if neither the run nor the model specifies it


class TaskPredictor:
    """Runs one model on one task; see runner.Predictor.

    Attributes:
      labels: names of the classes in the model's order; () for regression.
      num_batches: number of batches of the whole task.
    """

    def __init__(
        self, entry: Entry, path: pathlib.Path, workdir: pathlib.Path, batch_size: int, dtype: str | None, mesh: Any
    ) -> None:
        """Read the model and the records; raise a UserError if they do not fit together."""
        exported = path / "model"  # the best checkpoint of a fine-tuning run
        directory = exported if native_checkpoint.is_run(path) and exported.is_dir() else path
        kind = TASKS[entry.task]
        lm = from_pretrained(directory, dtype=dtype, mesh=mesh)
        config = task_config(entry, lm, path, directory, batch_size)
        if lm.head != kind.head(config):
            raise ConfigError(
                f"Task {entry.name} needs a fine-tuned model with head {kind.head(config)!r}, but {directory} has head {lm.head!r}. "
                f"Fine-tune it first: python -m lm_research.train --config=configs/finetune/{entry.task}.py ..."
            )
        names = class_names(entry, lm, directory)
        try:
            self.corpus = open_labeled(config, workdir, kind.reader(config), _warn_if_cut, names)
        except DataError as error:
            unknown = f"which {directory} does not have (if it names its classes differently, set `labels:` in the order of its classes)"
            raise DataError(str(error).replace(NOT_TRAINED, unknown)) from error
        Verification(self.corpus.stores, config.data.verify, _warn_if_cut)
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
        """Return the task's outputs for a batch, which may still be being computed."""
        outputs = self.step(self.params, to_global(self.mesh, self.feed(number)))[1]
        if "chosen_BL" in outputs:  # they suffice, and are much smaller than logits
            outputs = {name: x for name, x in outputs.items() if name != "logits"}
        return outputs

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """Yield a prediction for each record, as a fine-tuning run writes them."""
        yield from export.predictions(self.task, "validation", outputs)


def _warn_if_cut(line: str) -> None:
    """Log a line about the records as a warning if it affects the scores."""
    if COUNT_AS_O in line:
        LOG.warning(line)


def task_config(
    entry: Entry, lm: LanguageModel, path: pathlib.Path, directory: pathlib.Path, batch_size: int
) -> Config:
    """Return the config of a fine-tuning run on these records, as far as it affects how they are read and scored.

    Args:
      entry: the task.
      lm: the model.
      path: a run or a model directory.
      directory: the directory from which the model was loaded.
      batch_size: number of records that run together.

    Raises:
      ConfigError: the model has no tokenizer, or sequences would be longer than it can read.
    """
    if lm.tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer, so it cannot read texts. Put its files there.")
    positions, length = lm.definition.arch.max_length or 0, entry.max_length
    run = read_config(path / "config.json") if native_checkpoint.is_run(path) else {}
    if not length and run:
        length = run["data"]["max_length"]
    if not length:
        length = min(positions or _DEFAULT_LENGTH, lm.tokenizer.max_length or _DEFAULT_LENGTH, _DEFAULT_LENGTH)
    if positions and length > positions:
        raise ConfigError(
            f"Task {entry.name}: max_length is {length}, but {path} has {positions} positions. Lower max_length in the suite."
        )
    names = ("text_key", "pair_key", "label_key", "problem_type", "label_separator", "metric")
    values = {name: getattr(entry, name) for name in names} | {"train": entry.data, "validation": entry.data}
    run_task = run["task"] if run and run["task"] and run["task"]["name"] == entry.task else {}
    values |= {name: run_task[name] for name in _RUN_KEYS if name in run_task} | {"predict_with_generate": "each"}
    if lm.embedding is not None and lm.embedding.supported:
        embedding = lm.embedding
        values |= {"pooling": embedding.pooling, "normalize": embedding.normalize, "prompt": embedding.prompt()}
        values |= {"similarity": embedding.similarity}
    values["labels"], keys = class_names(entry, lm, path), TASKS.keys(entry.task)
    objective = run["objective"] if run else {}
    return resolve(
        {
            "task": {"name": entry.task} | {name: value for name, value in values.items() if name in keys} | entry.more,
            "data": {"max_length": length},
            "model": {"max_length": max(length, positions)},
            "train": {"batch_size": batch_size, "init_from": str(directory)},
            "tokenizer": {"path": str(lm.tokenizer.name)},
            "objective": {name: objective[name] for name in ("target_length", "decoder_start") if name in objective},
        }
    )


def check_outputs(entry: Entry, lm: LanguageModel, directory: pathlib.Path, needed: int) -> None:
    """Raise a ConfigError if the model's number of outputs or its problem type does not fit the records."""
    count, problem_type = lm.definition.head.num_labels, lm.config.to_dict().get("problem_type")
    if needed != count:
        raise ConfigError(
            f"Task {entry.name}: problem_type={entry.problem_type} needs {needed} outputs for {entry.data}, but {directory} has {count}. "
            "Set label_key to the right field, or set problem_type."
        )
    if problem_type and (problem_type == "regression") != (entry.problem_type == "regression"):
        raise ConfigError(
            f"Task {entry.name}: {directory} has problem_type={problem_type}, but the suite has {entry.problem_type}. Set problem_type to "
            "regression if the model predicts values, otherwise to single_label or multi_label."
        )


def class_names(entry: Entry, lm: LanguageModel, path: pathlib.Path) -> tuple[str, ...] | None:
    """Return the data's names of the model's classes, in the model's order; None if the head has no classes.

    They are the labels in the suite, else the names in the model's config, else numbers.
    """
    if entry.task not in _CLASS_TASKS:
        return None
    count = lm.definition.head.num_labels
    if entry.problem_type == "regression":
        return ()
    if entry.labels:
        if len(entry.labels) != count:
            raise ConfigError(
                f"Task {entry.name} names {len(entry.labels)} labels, but {path} has {count} classes. Name all of them, in order."
            )
        return entry.labels
    id2label = lm.config.to_dict().get("id2label") or {}
    names = tuple(str(id2label.get(str(i), id2label.get(i, f"LABEL_{i}"))) for i in range(count))
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return tuple(map(str, range(count))) if generic else names

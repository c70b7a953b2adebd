"""The keys of the section task that all tasks share; those of a single task are in its own file."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lm_research.config.keys import Section, key

_LATER = ("columns", "skip_unlabeled")  # keys that earlier versions did not have


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """Settings of a task.

    Attributes:
      reads_objective: the objective whose settings the task also uses; None leaves the section objective unchanged.
      not_reading: keys that do not affect how examples are read, so that changing them keeps the cached data set.
      for_training: keys that have no effect when a finished model is evaluated.
    """

    reads_objective: ClassVar[str | None] = None
    not_reading: ClassVar[frozenset[str]] = frozenset({"train", "validation", "test", "metric", "patience"})
    for_training: ClassVar[frozenset[str]] = frozenset({"train", "validation", "test", "patience"})

    name: str | None = key(
        None,
        "Labeled task to fine-tune for, instead of an objective: classification of texts or pairs, tagging of "
        "words, extractive question answering, multiple choice, text embedding, seq2seq (generate a target from a "
        "source), or instruction following.",
    )
    train: str | None = key(
        None,
        "Labeled training examples: .jsonl, .json, .csv, .tsv or .parquet files, tfds:NAME@SPLIT, or (seq2seq) "
        "lines:SOURCES,TARGETS, two line-aligned text files.",
        path=True,
    )
    validation: str | None = key(
        None,
        "Held-out examples in the same formats; None holds out a fraction of the training examples "
        "(data.validation_fraction).",
        path=True,
    )
    test: str | None = key(None, "Test examples, scored once at the end of the run.", path=True)
    text_key: str = key(
        "text",
        "Field of the text (tagging: the list of words; question_answering: the context; seq2seq: the source; "
        "instruction: the prompt); A.B is field B of field A.",
    )
    label_key: str = key(
        "label",
        "Field of the label: a name or number, a list of names, a value, (tagging) a list of tags, (seq2seq) the target, or (instruction) "
        "the answer.",
    )
    columns: tuple[str, ...] | None = key(
        None,
        "Names of the columns of .csv and .tsv files without a header line, from the first one; further columns are "
        "ignored. None reads the names from the first line.",
    )
    skip_unlabeled: bool = key(
        False, "Leave out examples whose task.label_key is empty, and log their number; otherwise they are an error."
    )
    metric: str | None = key(
        None,
        "Metric for choosing the best checkpoint and for early stopping, or the mean of several, joined with +; "
        "None uses the task's default.",
    )
    patience: int | None = key(
        None,
        "Stop after this many consecutive evaluations without an improvement of the metric; None trains all steps.",
        low=0,
    )

    @property
    def tag_column(self) -> str | None:
        """Column of the tags in CoNLL files, "" for the default one; None for a task without tags."""
        return None

    def reading(self) -> dict[str, Any]:
        """Return the settings that affect how examples are read; those of _LATER only if they are set, so that cached data sets stay valid."""
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name not in self.not_reading}
        return {name: value for name, value in settings.items() if value or name not in _LATER}

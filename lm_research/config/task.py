"""The keys of the section task that all tasks have; those of a task are in its own file."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lm_research.config.keys import Section, key


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """Settings of a task.

    Attributes:
      reads_objective: the objective whose settings the task reads as well; None leaves the section objective as it is.
      not_reading: keys that decide nothing of how records are read, so that a data set is found again whatever they are.
      for_training: keys that mean nothing where a finished model is evaluated.
    """

    reads_objective: ClassVar[str | None] = None
    not_reading: ClassVar[frozenset[str]] = frozenset({"train", "validation", "test", "metric", "patience"})
    for_training: ClassVar[frozenset[str]] = frozenset({"train", "validation", "test", "patience"})

    name: str | None = key(
        None,
        "Labeled task to fine-tune for, instead of an objective: classification of texts or pairs, tagging of words, question "
        "answering by spans of a context, multiple choice, embedding of texts so that pairs lie close together, writing a target for a "
        "source, or following instructions.",
    )
    train: str | None = key(
        None,
        "Labeled records: .jsonl, .json, .csv, .tsv or .parquet files, tfds:NAME@SPLIT, or (seq2seq) lines:SOURCES,TARGETS, two text "
        "files whose lines belong together.",
        path=True,
    )
    validation: str | None = key(
        None, "Held-out records in the same forms; empty holds out a share (data.validation_fraction).", path=True
    )
    test: str | None = key(None, "Further records that are scored once, at the end of the run.", path=True)
    text_key: str = key(
        "text",
        "Field of the text (tagging: of the list of words; question_answering: of the context; seq2seq: of the source; instruction: of the "
        "prompt); A.B is field B of field A.",
    )
    label_key: str = key(
        "label",
        "Field of the label: a name or number, a list of names, a value, (tagging) a list of tags, (seq2seq) the target, or (instruction) "
        "the answer.",
    )
    metric: str | None = key(
        None,
        "Metric that picks the best checkpoint and stops early, or several with + between, for their mean; empty is the usual one.",
    )
    patience: int | None = key(
        None, "Evaluations in a row without a better metric after which training ends; 0 trains all steps.", low=0
    )

    @property
    def tag_column(self) -> str | None:
        """The column of the tags in files of columns, "" being the usual one; None of a task that reads no tags."""
        return None

    def reading(self) -> dict[str, Any]:
        """What decides how records are read."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.not_reading}

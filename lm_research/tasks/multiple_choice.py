"""Multiple choice: which of several texts goes with a context (SWAG, COPA, RACE).

As in BERT's fine-tuning for SWAG (Devlin et al. 2018, section 4.4), each choice is a row of the context followed by the choice, and the
row's summary gets one score. The loss is the cross-entropy of the softmax over the choices of a question.

Legend: B batch (questions), C choices, L length, R rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from string import ascii_uppercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.config import Config, key
from lm_research.data.store import TokenStore
from lm_research.errors import DataError
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelTask, PairConfig, concat_outputs
from lm_research.tasks.dataset import Reader, Row, encode_texts
from lm_research.tasks.labels import label_key
from lm_research.tasks.records import Record
from lm_research.tasks.rows import PaddedExamples
from lm_research.tokenizers.base import Tokenizer

# Ways of reading answers; the first that fits a file is used.
READINGS = TEXTS, LETTERS, FROM_0, FROM_1 = ("texts of choices", "letters", "numbers from 0", "numbers from 1")


@dataclasses.dataclass(frozen=True)
class MultipleChoiceConfig(PairConfig):
    """Settings of multiple choice."""

    choices_key: str = key("choices", "Field with the list of choices, or one field per choice, separated by commas.")


class ChoiceReader(Reader):
    """Reads task.text_key (the context), pair_key (a beginning that each choice continues, if set), choices_key and label_key."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, MultipleChoiceConfig.of(config.task)

    @override
    def texts(self, record: Record) -> list[str]:
        context, choices = self._question(record)
        return [context, *choices]

    def resolve(self, parts: dict[str, list[Record]], log: Callable[[str], None]) -> dict[str, list[Record]]:
        """Replace answers by numbers from 0. Each part is read in one way, which is the same for all parts if one fits all."""
        by_part = {part: self._readings(records) for part, records in parts.items()}
        common = [reading for reading in READINGS if all(reading in readings for readings in by_part.values())]
        resolved = {}
        for part, records in parts.items():
            readings = {reading: by_part[part][reading] for reading in common or READINGS if reading in by_part[part]}
            reading, *others = readings
            others = [other for other in others if readings[other] != readings[reading]]
            log(f"{part}: answers are read as {reading}" + f" ({' and '.join(others)} would fit too)" * bool(others))
            rows = zip(records, readings[reading], strict=True)
            resolved[part] = [record._replace(fields=record.fields | {self.task.label_key: n}) for record, n in rows]
        return resolved

    def _readings(self, records: Sequence[Record]) -> dict[str, list[int]]:
        """Read the right choices in each way that fits all records: reading -> numbers; raise a DataError if no way fits."""
        readings: dict[str, list[int]] = {reading: [] for reading in READINGS}
        for record in records:
            value, choices = record.get(self.task.label_key, "label_key"), self._choices(record)
            here = _numbers(value, choices)
            if not here:
                raise DataError(
                    f"{record.where}: field {self.task.label_key!r} is {value!r:.80}, not one of {len(choices)} choices: a number from 0 to "
                    f"{len(choices) - 1}, or from 1, a letter from A to {ascii_uppercase[min(len(choices), 26) - 1]}, or the text of one. "
                    "Fix it, or name another field in --config.task.label_key."
                )
            if not readings.keys() & here.keys():
                raise DataError(
                    f"{record.where}: field {self.task.label_key!r} is {value!r:.80}, which can be {' or '.join(here)}, but the answers before "
                    f"it, from {records[0].where} on, are {' or '.join(readings)}. All answers of a file must use one notation."
                )
            readings = {reading: numbers for reading, numbers in readings.items() if reading in here}
            for reading, numbers in readings.items():
                numbers.append(here[reading])
        return readings

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        given = [self._question(record) for record in records]
        firsts = [context for context, choices in given for _ in choices]
        seconds = [choice for _, choices in given for choice in choices]
        encoded = encode_texts(tokenizer, firsts, seconds, self.config.data.max_length)
        for record, (_, choices) in zip(records, given, strict=True):
            for number in range(len(choices)):
                yield Row(*next(encoded), record.fields[self.task.label_key], number == 0)

    def _question(self, record: Record) -> tuple[str, list[str]]:
        """Return the context and the choices, each with the beginning of pair_key if it is set."""
        choices = self._choices(record)
        if self.task.pair_key:
            start = record.text(self.task.pair_key, "pair_key")
            choices = [f"{start} {choice}" for choice in choices]
        return record.text(self.task.text_key, "text_key"), choices

    def _choices(self, record: Record) -> list[str]:
        keys = [name.strip() for name in self.task.choices_key.split(",")]
        if len(keys) > 1:
            return [record.text(key, "choices_key") for key in keys]
        value = record.get(keys[0], "choices_key")
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) for one in value):
            raise DataError(
                f"{record.where}: field {keys[0]!r} is {str(value)[:80]!r}, not a list of two texts or more. Fix it, or list the fields of "
                "the choices, separated by commas, in --config.task.choices_key."
            )
        return value


def _numbers(value: Any, choices: list[str]) -> dict[str, int]:
    """Interpret a value in each way that fits: reading -> number of the choice."""
    key, size, found = label_key(value, choices), len(choices), {}
    if isinstance(value, str) and choices.count(value) == 1:
        found[TEXTS] = choices.index(value)
    if isinstance(value, str) and key.upper() in tuple(ascii_uppercase[:size]):
        found[LETTERS] = ascii_uppercase.index(key.upper())
    if key.isdecimal() and len(key) < 10:
        found |= {FROM_0: int(key)} if int(key) < size else {}
        found |= {FROM_1: int(key) - 1} if 0 < int(key) <= size else {}
    return found


class ChoiceExamples(PaddedExamples):
    """Questions as C rows each, where C is the largest number of choices; questions with fewer have empty rows."""

    def __init__(self, store: TokenStore, arrays: dict[str, np.ndarray], *rest: Any) -> None:
        super().__init__(store, arrays, *rest)
        self.counts = np.bincount(arrays["record"])
        self.first_row = np.cumsum(self.counts) - self.counts
        self.num_examples, self.num_choices = len(self.counts), int(self.counts.max())

    def rows_of(self, index_B: np.ndarray) -> np.ndarray:
        """Return the rows of questions [B, C]; -1 for missing choices."""
        item_B, choice_C = np.maximum(index_B, 0), np.arange(self.num_choices)
        is_choice_BC = (index_B >= 0)[:, None] & (choice_C < self.counts[item_B][:, None])
        return np.where(is_choice_BC, self.first_row[item_B][:, None] + choice_C, -1)

    @override
    def example_lengths(self) -> np.ndarray:
        return np.maximum.reduceat(self.lengths, self.first_row)

    @override
    def width(self, index_B: np.ndarray) -> int:
        return super().width(self.rows_of(index_B).reshape(-1))

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """Make a batch: tokens, types, segments [B, C, L] int32; choices_BC (1 for a choice, 0 for none), labels_B, row_weights_B."""
        rows_BC = self.rows_of(index_B)
        flat = super().batch(np.repeat(epoch_B, self.num_choices), rows_BC.reshape(-1), width)
        batch = {name: x.reshape(*rows_BC.shape, *x.shape[1:]) for name, x in flat.items()}
        batch["labels_B"] = batch["labels_B"][:, 0]
        weights_BC = batch.pop("row_weights_B")
        return batch | {"choices_BC": weights_BC, "row_weights_B": weights_BC.max(1)}


class ChoiceObjective(LabelObjective):
    """Mean loss over questions."""

    metrics = {"choice_loss_nats": "rows", "accuracy": "rows"}
    loss_terms = ("choice_loss_nats",)

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Compute scores [B, C]; missing choices get the lowest float."""
        shape = batch["tokens_BL"].shape
        rows = {name: batch[name].reshape(-1, shape[-1]) for name in ("tokens_BL", "types_BL", "segments_BL")}
        logits_BC = super().logits(model, rows, key).reshape(shape[:2])
        return jnp.where(batch["choices_BC"] > 0, logits_BC, jnp.finfo(logits_BC.dtype).min)

    @override
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        weights_B, labels_B = batch["row_weights_B"], batch["labels_B"]
        chosen_B = jnp.take_along_axis(jax.nn.log_softmax(logits), labels_B[:, None], axis=1)[:, 0]
        right_B = logits.argmax(-1) == labels_B
        return {"choice_loss_nats": -(weights_B * chosen_B).sum(), "accuracy": (weights_B * right_B).sum()}


@TASKS.register("multiple_choice", MultipleChoiceConfig)
class MultipleChoice(LabelTask):
    """The right one of several texts."""

    kinds = ("encoder",)
    examples_class = ChoiceExamples
    metric_kind = "choices"
    metric_names = ("accuracy", "calibration_error")

    @override
    def make_objective(self) -> ChoiceObjective:
        return ChoiceObjective()

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "multiple_choice"

    @classmethod
    @override
    def reader(cls, config: Config) -> ChoiceReader:
        return ChoiceReader(config)

    @override
    def default_metric(self) -> str:
        return "accuracy"

    def _collect(self, outputs: list[Outputs]) -> tuple[np.ndarray, np.ndarray]:
        """Collect logits and labels of all questions."""
        return concat_outputs(outputs, "logits"), concat_outputs(outputs, "labels_B")

    @override
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs:
        logits, labels = self._collect(outputs)
        return metrics.MetricInputs("choices", predictions=logits.argmax(-1), references=labels, logits=logits)

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per question, for predictions.jsonl; choices are numbered from 0."""
        for logits_C, label in zip(*self._collect(outputs), strict=True):
            probs_C = np.exp(logits_C - logits_C.max())
            best = int(logits_C.argmax())
            prob = round(float(probs_C[best] / probs_C.sum()), 6)
            yield {"label": int(label), "prediction": best, "probability": prob}

    @override
    def baseline(self) -> str:
        counts = np.bincount(self.corpus.arrays["validation"]["record"])
        return f"guessing: accuracy {np.mean(1.0 / counts):.4g}"

"""Multiple choice: which of several texts goes with a context (SWAG, COPA, RACE).

As in BERT's fine-tuning for SWAG (Devlin et al. 2018, section 4.4): each choice makes a row, the context and then the choice, whose
summary gets one score; the loss is the cross-entropy of the softmax over the choices of a question.

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

from lm_research import metrics
from lm_research.config import Config, key
from lm_research.data.store import TokenStore
from lm_research.errors import DataError
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelTask, PaddedExamples, PairConfig, joined
from lm_research.tasks.dataset import Reader, Row, encode_texts
from lm_research.tasks.labels import label_key
from lm_research.tasks.records import Record
from lm_research.tokenizers.base import Tokenizer

# Ways of reading answers; of those that fit a file, the first counts.
READINGS = TEXTS, LETTERS, FROM_0, FROM_1 = ("texts of choices", "letters", "numbers from 0", "numbers from 1")


@dataclasses.dataclass(frozen=True)
class MultipleChoiceConfig(PairConfig):
    choices_key: str = key("choices", "Field with the list of choices, or one field per choice, separated by commas.")


class ChoiceReader(Reader):
    """Reads task.text_key (the context), pair_key (what each choice goes on from, if anything), choices_key and label_key."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, MultipleChoiceConfig.of(config.task)

    def texts(self, record: Record) -> list[str]:
        context, choices = self._question(record)
        return [context, *choices]

    def resolve(self, parts: dict[str, list[Record]], log: Callable[[str], None]) -> dict[str, list[Record]]:
        """Records whose answers are numbers from 0. All of a part are read in one way, where there is one in that of the others."""
        found = {part: self._readings(records) for part, records in parts.items()}
        common = [reading for reading in READINGS if all(reading in ways for ways in found.values())]
        settled = {}
        for part, records in parts.items():
            ways = {reading: found[part][reading] for reading in common or READINGS if reading in found[part]}
            reading, *others = ways
            others = [other for other in others if ways[other] != ways[reading]]
            log(f"{part}: answers are read as {reading}" + f" ({' and '.join(others)} would fit too)" * bool(others))
            rows = zip(records, ways[reading], strict=True)
            settled[part] = [record._replace(fields=record.fields | {self.task.label_key: n}) for record, n in rows]
        return settled

    def _readings(self, records: Sequence[Record]) -> dict[str, list[int]]:
        """Way of reading -> the numbers of the right choices, of each way that fits all records; raises a DataError if none does."""
        ways: dict[str, list[int]] = {reading: [] for reading in READINGS}
        for record in records:
            value, choices = record.get(self.task.label_key, "label_key"), self._choices(record)
            here = _numbers(value, choices)
            if not here:
                raise DataError(
                    f"{record.where}: field {self.task.label_key!r} is {value!r:.80}, not one of {len(choices)} choices: a number from 0 to "
                    f"{len(choices) - 1}, or from 1, a letter from A to {ascii_uppercase[min(len(choices), 26) - 1]}, or the text of one. "
                    "Fix it, or name another field in --config.task.label_key."
                )
            if not ways.keys() & here.keys():
                raise DataError(
                    f"{record.where}: field {self.task.label_key!r} is {value!r:.80}, which can be {' or '.join(here)}, but the answers before "
                    f"it, from {records[0].where} on, are {' or '.join(ways)}. All of a file are read in one way: write them alike."
                )
            ways = {reading: numbers for reading, numbers in ways.items() if reading in here}
            for reading, numbers in ways.items():
                numbers.append(here[reading])
        return ways

    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        given = [self._question(record) for record in records]
        firsts = [context for context, choices in given for _ in choices]
        seconds = [choice for _, choices in given for choice in choices]
        encoded = encode_texts(tokenizer, firsts, seconds, self.config.data.max_length)
        for record, (_, choices) in zip(records, given, strict=True):
            for number in range(len(choices)):
                yield Row(*next(encoded), record.fields[self.task.label_key], number == 0)

    def _question(self, record: Record) -> tuple[str, list[str]]:
        """Context, and choices as they are read."""
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
                f"{record.where}: field {keys[0]!r} is {str(value)[:80]!r}, not a list of two texts or more. Fix it, or name the fields of "
                "the choices, with commas between, in --config.task.choices_key."
            )
        return value


def _numbers(value: Any, choices: list[str]) -> dict[str, int]:
    """Way of reading -> the number of the choice that a value then is."""
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
    """Questions as C rows each, C being the most choices of any; those that a question lacks are empty rows."""

    def __init__(self, store: TokenStore, arrays: dict[str, np.ndarray], *rest: Any) -> None:
        super().__init__(store, arrays, *rest)
        self.counts = np.bincount(arrays["record"])
        self.first = np.cumsum(self.counts) - self.counts
        self.num_examples, self.most = len(self.counts), int(self.counts.max())

    def rows_of(self, index_B: np.ndarray) -> np.ndarray:
        """Rows of questions, [B, C]; -1 where there is none."""
        item_B, choice_C = np.maximum(index_B, 0), np.arange(self.most)
        there_BC = (index_B >= 0)[:, None] & (choice_C < self.counts[item_B][:, None])
        return np.where(there_BC, self.first[item_B][:, None] + choice_C, -1)

    def example_lengths(self) -> np.ndarray:
        return np.maximum.reduceat(self.lengths, self.first)

    def width(self, index_B: np.ndarray) -> int:
        return super().width(self.rows_of(index_B).reshape(-1))

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """tokens, types, segments [B, C, L] int32; choices_BC (1 where there is one), labels_B, row_weights_B."""
        rows_BC = self.rows_of(index_B)
        flat = super().batch(np.repeat(epoch_B, self.most), rows_BC.reshape(-1), width)
        batch = {name: x.reshape(*rows_BC.shape, *x.shape[1:]) for name, x in flat.items()}
        batch["labels_B"] = batch["labels_B"][:, 0]
        weights_BC = batch.pop("row_weights_B")
        return batch | {"choices_BC": weights_BC, "row_weights_B": weights_BC.max(1)}


class ChoiceObjective(LabelObjective):
    """Mean loss over questions."""

    metrics = {"choice_loss_nats": "rows", "accuracy": "rows"}
    loss_terms = ("choice_loss_nats",)

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """[B, C]; the lowest number there is where there is no choice."""
        shape = batch["tokens_BL"].shape
        rows = {name: batch[name].reshape(-1, shape[-1]) for name in ("tokens_BL", "types_BL", "segments_BL")}
        logits_BC = super().logits(model, rows, key).reshape(shape[:2])
        return jnp.where(batch["choices_BC"] > 0, logits_BC, jnp.finfo(logits_BC.dtype).min)

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

    def make_objective(self) -> ChoiceObjective:
        return ChoiceObjective()

    @classmethod
    def head(cls, config: Config) -> str:
        return "multiple_choice"

    @classmethod
    def reader(cls, config: Config) -> ChoiceReader:
        return ChoiceReader(config)

    def default_metric(self) -> str:
        return "accuracy"

    def _kept(self, outputs: list[Outputs]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of all questions."""
        return joined(outputs, "logits"), joined(outputs, "labels_B")

    def scored(self, outputs: list[Outputs]) -> metrics.Scored:
        logits, labels = self._kept(outputs)
        return metrics.Scored("choices", predictions=logits.argmax(-1), references=labels, logits=logits)

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """One prediction a question, for predictions.jsonl: numbers of choices, from 0."""
        for logits_C, label in zip(*self._kept(outputs), strict=True):
            shares_C = np.exp(logits_C - logits_C.max())
            best = int(logits_C.argmax())
            share = round(float(shares_C[best] / shares_C.sum()), 6)
            yield {"label": int(label), "prediction": best, "probability": share}

    def baseline(self) -> str:
        counts = np.bincount(self.corpus.arrays["validation"]["record"])
        return f"guessing: accuracy {np.mean(1.0 / counts):.4g}"

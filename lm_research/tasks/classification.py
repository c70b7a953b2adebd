"""Classification of texts or pairs of texts: one of several labels, any number of labels, or one or more values (regression).

As in BERT's fine-tuning (Devlin et al. 2018, section 4.1), a linear layer reads the summary of the row. The loss is the cross-entropy,
the mean binary cross-entropy over labels, or the mean squared error over values.

Legend: B batch, C classes, N records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.common.documents import json_value
from lm_research.config import Config, TaskConfig, key
from lm_research.data.sampler import Examples
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError, DataError, suggest
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import (
    TASKS,
    LabelObjective,
    LabelsConfig,
    LabelTask,
    PairConfig,
    concat_outputs,
    drop_padding,
    flatten_slots,
)
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row, encode_texts
from lm_research.tasks.labels import NOT_TRAINED, label_key, label_names, label_numbers
from lm_research.tasks.records import Record
from lm_research.tasks.rows import PaddedExamples
from lm_research.tokenizers.base import Tokenizer

# Problem type -> the type of its predictions (a key of metrics.KINDS), and their metrics.
METRICS = {
    "single_label": (
        "single_label",
        ("accuracy", "precision", "recall", "f1", "f1_macro", "f1_micro", "matthews", "calibration_error"),
    ),
    "multi_label": ("multi_label", ("exact_match", "precision", "recall", "f1_micro", "f1_macro")),
    "regression": ("values", ("pearson", "spearman", "squared_error")),
}
_HF_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(PairConfig, LabelsConfig):
    """Settings of classification and regression."""

    not_reading = TaskConfig.not_reading | {"label_smoothing", "class_weights", "label_threshold"}
    for_training = TaskConfig.for_training | {"label_smoothing", "class_weights"}

    problem_type: str = key(
        "single_label",
        "One label of several, any number of labels, or a value (regression). Several values are a list, or the "
        "fields that label_key names, separated by commas.",
        choices=("single_label", "multi_label", "regression"),
    )
    label_separator: str = key(",", "multi_label: separator of the labels in a field that is a single string.")
    label_threshold: float = key(
        0.5, "multi_label: labels with a higher probability than this are predicted.", low=0.001, high=0.999
    )
    group_key: str | None = key(
        None,
        "single_label: field whose value is equal in all examples of a group; group_accuracy is the fraction of "
        "groups in which every label is correct.",
    )
    relevance_key: str | None = key(
        None,
        "Field with the value (0 to 1) of choosing this example of its group (see task.group_key). The chosen "
        "example has the highest probability of the last label: choice_credit is the mean value, choice_accuracy "
        "the fraction of groups whose chosen example has that label.",
    )
    label_smoothing: float = key(
        0.0,
        "single_label: probability spread evenly over all labels during training.",
        low=0.0,
        high=0.99,
    )
    class_weights: str | dict[str, float] | None = key(
        None,
        "single_label: weight of each class in the loss: balanced (inversely proportional to its number of "
        "training examples), or one weight per label; None weights all equally.",
    )


class ClassificationReader(Reader):
    """Reads task.text_key, pair_key and label_key."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, ClassificationConfig.of(config.task)
        self.configured_labels = self.task.labels or ()
        self.unnamed_labels = "values" if self.task.problem_type == "regression" else "none"
        # Regression: the first record read sets how many values each record has, and whether they are a list.
        self.num_values: int | None = None
        self.as_list: bool | None = None

    @override
    def label_names(self, records: Sequence[Record]) -> list[str]:
        if self.task.problem_type == "regression":
            keys = self._value_keys(records[0])
            return keys if len(keys) > 1 else []
        given = ((record, zip(self._given(record), self._labels(record), strict=True)) for record in records)
        found = label_names((value, key, record.where) for record, pairs in given for value, key in pairs)
        if self.configured_labels:
            return self._named(found)
        if len(found) < (2 if self.task.problem_type == "single_label" else 1):
            enough = "two or more are needed" if self.task.problem_type == "single_label" else "nothing can be learned"
            raise DataError(
                f"{self.task.train} has {len(found)} label{'s' * (not found)} in field {self.task.label_key!r} "
                f"({', '.join(repr(name) for name, _ in found.values()) or 'none'}); {enough}. Name the right field in --config.task.label_key."
            )
        return sorted((name for name, _ in found.values()), key=_by_number)

    def _named(self, found: dict[str, tuple[str, str]]) -> list[str]:
        """Check that every label of task.labels has records and that no record has another; return them in order."""
        names = list(self.configured_labels)
        keys = label_numbers(names)
        if len(names) < 2 and self.task.problem_type == "single_label":
            raise DataError(
                f"config.task.labels={','.join(names)} is one label; two or more are needed. Name all labels, or set "
                "--config.task.problem_type=multi_label, where a record may have none."
            )
        for label, (name, where) in found.items():
            if label not in keys:
                raise DataError(
                    f"{where} has the label {name!r}, which is not in config.task.labels. {suggest(name, names)}"
                )
        empty = [name for name, key in zip(names, keys, strict=True) if key not in found]
        if empty:
            raise DataError(
                f"{self.task.train} has no record with the label {', '.join(map(repr, empty))} of config.task.labels: nothing "
                "can be learned about it. Add records, or remove the label."
            )
        return names

    def texts(self, record: Record) -> list[str]:
        """Return the one or two texts of a record."""
        texts = [record.text(self.task.text_key, "text_key")]
        return texts + ([record.text(self.task.pair_key, "pair_key")] if self.task.pair_key else [])

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        texts = [self.texts(record) for record in records]
        seconds = [pair[1] for pair in texts] if self.task.pair_key else None
        encoded = encode_texts(tokenizer, [pair[0] for pair in texts], seconds, self.config.data.max_length)
        numbers = label_numbers(names)
        for record, (ids, second) in zip(records, encoded, strict=True):
            yield Row(ids, second, self._target(record, numbers))

    def metadata(self, record: Record) -> dict[str, Any] | None:
        """Return the record's group and, with task.relevance_key, its relevance."""
        if not self.task.group_key or self.task.problem_type != "single_label":
            return None
        value = record.get(self.task.group_key, "group_key")
        kept: dict[str, Any] = {"group": self._key(record, value, self.task.group_key, "group_key")}
        if self.task.relevance_key:
            key = self.task.relevance_key
            value = record.get(key, "relevance_key")
            kept["credit"] = _number(record, key, value, "name another field in --config.task.relevance_key")
            if not 0 <= kept["credit"] <= 1:
                raise DataError(
                    f"{record.where}: field {self.task.relevance_key!r} is {kept['credit']:g}, not from 0 to 1. Fix it, or name another in "
                    "--config.task.relevance_key."
                )
        return kept

    def _target(self, record: Record, numbers: dict[str, int]) -> Any:
        if self.task.problem_type == "regression":
            return self._values(record)
        labels = self._labels(record)
        for name in labels:
            if name not in numbers:
                raise DataError(f"{record.where} has the label {name!r}, {NOT_TRAINED}. {suggest(name, numbers)}")
        if self.task.problem_type == "single_label":
            return numbers[labels[0]]
        return [int(name in labels) for name in numbers]

    def _labels(self, record: Record) -> list[str]:
        """Return the keys of a record's labels; raise a DataError if one is not a label."""
        otherwise = ", or set --config.task.problem_type=multi_label for lists" * (
            self.task.problem_type == "single_label"
        )
        return [self._key(record, one, self.task.label_key, "label_key", otherwise) for one in self._given(record)]

    def _given(self, record: Record) -> list[Any]:
        """Return the raw labels of a record: one, or with multi_label those of a list, of a JSON list, or of a text with separators."""
        value = record.get(self.task.label_key, "label_key")
        if self.task.problem_type == "single_label":
            return [value]
        if not isinstance(value, str):
            return list(value) if isinstance(value, (list, tuple)) else [value]
        if value.lstrip().startswith("["):
            with contextlib.suppress(ValueError):
                return json_value(value)
        return [part for part in value.split(self.task.label_separator) if part.strip()]

    def _key(self, record: Record, value: Any, field: str, setting: str, otherwise: str = "") -> str:
        """Return the key of a label; raise a DataError if the value is not a label."""
        key = label_key(value, self.configured_labels)
        if not key:
            raise DataError(
                f"{record.where}: field {field!r} is {record.fields.get(field, value)!r:.80}, not a label. Fix it, name another field in "
                f"--config.task.{setting}{otherwise}."
            )
        return key

    def _value_keys(self, record: Record) -> list[str]:
        """List the fields of values: task.label_key as a whole, or its comma-separated parts."""
        key = self.task.label_key
        return [key] if key in record.fields else [name.strip() for name in key.split(",")]

    def _values(self, record: Record) -> float | list[float]:
        """Return one value, or a list of values from several fields or from a list in one field (JSON in a table)."""
        keys = self._value_keys(record)
        fields = [record.get(key, "label_key") for key in keys]
        if len(keys) == 1 and isinstance(fields[0], str) and fields[0].lstrip().startswith("["):
            with contextlib.suppress(ValueError):
                fields = [json_value(fields[0])]
        listed = len(keys) == 1 and isinstance(fields[0], (list, tuple))
        values = list(fields[0]) if listed else fields
        numbers = [
            _number(record, ",".join(keys), one, "set --config.task.problem_type=single_label, which needs no numbers")
            for one in values
        ]
        self.num_values = self.num_values or len(numbers)
        if len(numbers) != self.num_values:
            raise DataError(
                f"{record.where}: field {self.task.label_key!r} has {len(numbers)} values, but earlier records have {self.num_values}. "
                "Give all records equally many."
            )
        self.as_list = listed or len(keys) > 1 if self.as_list is None else self.as_list
        return numbers if self.as_list else numbers[0]


def _number(record: Record, key: str, value: Any, otherwise: str) -> float:
    """Convert a value to a finite number; raise a DataError that suggests `otherwise` if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.where}: field {key!r} is {value!r:.80}, not a number. Fix it, or {otherwise}.")
    return number


def _by_number(name: str) -> tuple[float, str]:
    """Sort key: numbers by value, then names alphabetically."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def class_weights(given: str | Mapping[str, float], labels: Sequence[str], given_N: np.ndarray) -> np.ndarray:
    """Resolve task.class_weights to a weight for each label in order, float32 [C].

    "balanced" is N / (C x records of the class): all classes have equal total weight, and the mean weight of a record is 1. Any other text
    is a dict in the notation of earlier versions: LABEL=WEIGHT, ...

    Raises:
      ConfigError: it is neither "balanced" nor a weight of 0 or more for every label.
    """
    if given == "balanced":
        counts = np.bincount(given_N, minlength=len(labels))
        return (len(given_N) / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
    weights = _spelled_weights(given) if isinstance(given, str) else dict(given)
    if (
        set(weights) != set(labels)
        or not all(0 <= weight < math.inf for weight in weights.values())
        or not any(weights.values())
    ):
        raise ConfigError(
            f"config.task.class_weights={given!r} is not none, balanced, or a weight of 0 or more for every label, not all 0. Write, with "
            f"your numbers, {','.join(f'{name}=1' for name in labels)}."
        )
    return np.array([weights[name] for name in labels], np.float32)


def _spelled_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            weights[name.strip()] = math.nan
    return weights


class ClassificationObjective(LabelObjective):
    """Mean loss over records.

    Args:
      problem_type: "single_label" (one of several), "multi_label" (any number) or "regression".
      class_weights: weight of each class in the loss [C]; single_label only.
      label_smoothing: probability spread evenly over all labels; single_label only.
    """

    def __init__(self, problem_type: str, class_weights: np.ndarray, label_smoothing: float) -> None:
        self.problem_type, self.class_weights, self.label_smoothing = problem_type, class_weights, label_smoothing
        loss = {"single_label": "class_loss_nats", "multi_label": "labels_loss_nats", "regression": "squared_error"}[
            problem_type
        ]
        self.metrics, self.loss_terms = {loss: "rows"}, (loss,)
        if problem_type == "single_label":
            self.metrics["accuracy"] = "rows"

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        sums = super().normalizers(batch)
        if self.problem_type == "single_label":
            batch = flatten_slots(batch)
            sums["rows"] = (batch["row_weights_B"] * self._weights(batch)).sum()
        return sums

    def _weights(self, batch: Batch) -> jax.Array:
        return jnp.asarray(self.class_weights)[batch["labels_B"]]

    @override
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        weights_B, labels_B = batch["row_weights_B"], batch["labels_B"]
        if self.problem_type == "regression":
            errors_B = jnp.square(logits - labels_B.reshape(logits.shape)).mean(-1)
            return {"squared_error": (weights_B * errors_B).sum()}
        if self.problem_type == "multi_label":
            losses_BC = jax.nn.softplus(logits) - logits * labels_B
            return {"labels_loss_nats": (weights_B * losses_BC.mean(-1)).sum()}
        weights_B = weights_B * self._weights(batch)
        log_probs_BC, smooth = jax.nn.log_softmax(logits), self.label_smoothing
        chosen_B = jnp.take_along_axis(log_probs_BC, labels_B[:, None], axis=1)[:, 0]
        losses_B = -((1.0 - smooth) * chosen_B + smooth * log_probs_BC.mean(-1))
        correct_B = logits.argmax(-1) == labels_B
        return {"class_loss_nats": (weights_B * losses_B).sum(), "accuracy": (weights_B * correct_B).sum()}


@TASKS.register("classification", ClassificationConfig)
class Classification(LabelTask):
    """Labels or values of texts and pairs of texts."""

    kinds = ("encoder", "decoder")
    supports_packing = True

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.settings = ClassificationConfig.of(config.task)
        self.problem_type = self.settings.problem_type
        self.exact = self.problem_type == "single_label"
        self.grouped = self.exact and bool(self.settings.group_key)
        chosen = self.grouped and bool(self.settings.relevance_key)
        groups = ("group_accuracy",) * self.grouped + ("choice_accuracy", "choice_credit") * chosen
        self.metric_kind, names = METRICS[self.problem_type]
        self.metric_names = (*names, *groups)
        super().__init__(config, corpus)

    @override
    def make_objective(self) -> ClassificationObjective:
        given, weights = self.settings.class_weights, np.ones(max(1, len(self.labels)), np.float32)
        if self.problem_type == "single_label" and given is not None and given != "none":
            weights = class_weights(given, self.labels, self.corpus.arrays["train"]["labels"])
        return ClassificationObjective(self.problem_type, weights, self.settings.label_smoothing)

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "classification"

    @classmethod
    @override
    def reader(cls, config: Config) -> ClassificationReader:
        return ClassificationReader(config)

    @classmethod
    @override
    def num_labels(cls, config: Config, corpus: LabeledCorpus) -> int:
        labels = corpus.arrays["train"]["labels"]
        return labels.shape[1] if labels.ndim == 2 else max(1, len(corpus.labels))

    @override
    def default_metric(self) -> str:
        return {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "spearman"}[self.problem_type]

    @override
    def examples(self, store: TokenStore, purpose: str) -> Examples:
        examples, metadata = super().examples(store, purpose), self.corpus.metadata.get(self.corpus.part_of(store))
        if metadata and isinstance(examples, PaddedExamples):
            examples.groups = np.unique([one["group"] for one in metadata], return_inverse=True)[1].astype(np.int32)
            if "credit" in metadata[0]:
                examples.credits = np.array([one["credit"] for one in metadata], np.float32)
        return examples

    @override
    def metric_inputs(self) -> tuple[str, ...]:
        task = self.settings
        missing = {"groups": not task.group_key, "credits": not (task.group_key and task.relevance_key)}
        return tuple(name for name in super().metric_inputs() if not missing.get(name))

    def _chosen(self, logits: np.ndarray) -> np.ndarray:
        """Mark the labels whose probability is above task.label_threshold, bool [..., C]."""
        threshold = self.settings.label_threshold
        return logits > math.log(threshold / (1 - threshold))

    @override
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs:
        logits, labels = concat_outputs(outputs, "logits"), concat_outputs(outputs, "labels_B")
        if self.problem_type == "regression":
            return metrics.MetricInputs("values", predictions=logits.reshape(labels.shape), references=labels)
        if self.problem_type == "multi_label":
            return metrics.MetricInputs("multi_label", predictions=self._chosen(logits), references=labels > 0)
        optional = {"groups": "groups_B", "credits": "credits_B"}
        further = {name: concat_outputs(outputs, key) for name, key in optional.items() if key in outputs[0]}
        return metrics.MetricInputs(
            "single_label",
            predictions=logits.argmax(-1),
            references=labels,
            logits=logits,
            num_labels=logits.shape[-1],
            **further,
        )

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per record, for predictions.jsonl."""
        for output in outputs:
            for logits, label in zip(drop_padding(output, "logits"), drop_padding(output, "labels_B"), strict=True):
                if self.problem_type == "regression":
                    yield {"label": label.tolist(), "prediction": logits.reshape(label.shape).tolist()}
                elif self.problem_type == "multi_label":

                    def names(chosen: Any) -> list[str]:
                        return [name for name, one in zip(self.labels, chosen, strict=True) if one]

                    yield {"label": names(label > 0), "prediction": names(self._chosen(logits))}
                else:
                    probs = np.exp(logits - logits.max())
                    best = int(logits.argmax())
                    yield {
                        "label": self.labels[int(label)],
                        "prediction": self.labels[best],
                        "probability": round(float(probs[best] / probs.sum()), 6),
                    }

    @override
    def baseline(self) -> str:
        labels, held = (self.corpus.arrays[part]["labels"] for part in ("train", "validation"))
        if self.problem_type == "regression":
            return f"always the mean: squared error {np.square(held - labels.mean(0)).mean():.4g}"
        if self.problem_type == "multi_label":
            return f"{labels.sum(1).mean():.3g} labels a record on average"
        majority = int(np.bincount(labels).argmax())
        return f"always {self.labels[majority]!r}: accuracy {(held == majority).mean():.4g}"

    @override
    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        return super().update_hf_config(config) | {"problem_type": _HF_PROBLEM_TYPES[self.problem_type]}

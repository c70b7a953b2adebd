"""Tagging: a label for each word, such as named entities and parts of speech (Devlin et al. 2018, section 5.3).

Words are encoded as running text, with the special tokens of the model's family around it. The first piece of a word has its label; its
other pieces and special tokens have none.

A sentence longer than data.max_length is read in overlapping windows (tokenizers/windows.py); each word is learned and predicted in the
window where it has the most context. With task.long_sentences=cut the words past data.max_length are cut off instead: they are not
learned, and their tags are predicted as O. The log counts them.

Legend: B batch, L length, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.common.documents import short
from lm_research.config import Config, key
from lm_research.errors import DataError, suggest
from lm_research.metrics.tags import mark_entities
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelsConfig, LabelTask, WindowsConfig
from lm_research.tasks.dataset import IGNORED, Reader, Row
from lm_research.tasks.labels import NOT_TRAINED, label_key, label_numbers
from lm_research.tasks.records import TAGS, WORDS, Record
from lm_research.tasks.rows import WindowExamples
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.windows import WordWindow, word_windows

NO_ENTITY = "O"
COUNT_AS_O = "count as O"


@dataclasses.dataclass(frozen=True)
class TaggingConfig(LabelsConfig, WindowsConfig):
    """Settings of tagging."""

    column: str | None = key(
        None,
        "CoNLL files: column of the tags, by its CoNLL-U name (UPOS, XPOS, DEPREL, ...) or by its number, from 1 "
        "or from the end (-1 is the last); None uses UPOS of CoNLL-U, and otherwise the last.",
    )
    long_sentences: str = key(
        "windows",
        "Sentences of more than data.max_length tokens: split into overlapping windows, or cut off, so that the "
        "missing words count as tagged O.",
        choices=("windows", "cut"),
    )

    @property
    @override
    def tag_column(self) -> str | None:
        return self.column or ""


class TaggingReader(Reader):
    """Reads words and tags: lists of equal length, or CoNLL columns."""

    by_token = True

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, TaggingConfig.of(config.task)
        self.cuts_sentences = self.task.long_sentences == "cut"
        self.num_missing = 0  # words cut off since the last `summarize_lengths`
        self.configured_labels = self.task.labels or ()

    def _pair(self, record: Record) -> tuple[list[str], list[str]]:
        task = self.task
        columns = set(record.fields) == {WORDS, TAGS}
        words = record.get(WORDS if columns else task.text_key, "text_key")
        tags = record.get(TAGS if columns else task.label_key, "label_key")
        for name, value in (("text_key", words), ("label_key", tags)):
            if not isinstance(value, list):
                raise DataError(
                    f"{record.where}: the field of --config.task.{name} is {short(value)}, not a list with one entry per word. Fix it, or "
                    "name another field."
                )
        if len(words) != len(tags):
            raise DataError(
                f"{record.where} has {len(words)} words and {len(tags)} tags: each word needs one tag. Fix it."
            )
        if not words:
            raise DataError(f"{record.where} has no words. Leave it out.")
        keys = [label_key(tag, self.configured_labels) for tag in tags]
        for value, word, tag in zip(tags, words, keys, strict=True):
            if not tag or not (isinstance(word, str) or type(word) in (int, float)) or word != word:
                raise DataError(
                    f"{record.where} has the word {short(word)} with the tag {short(value)}: a word is a text or a number, "
                    "and a tag is a name or a number, not empty. Fix it."
                )
        return [str(word) for word in words], keys

    @override
    def label_names(self, records: Sequence[Record]) -> list[str]:
        found: dict[str, str] = {}
        for record in records:
            for tag in self._pair(record)[1]:
                found.setdefault(tag, record.where)
        if not self.configured_labels:
            return sorted(found, key=lambda tag: (tag != "O", tag))
        names = list(self.configured_labels)
        for tag in found.keys() - label_numbers(names):
            raise DataError(
                f"{found[tag]} has the tag {tag!r}, which is not in config.task.labels. {suggest(tag, names)}"
            )
        return names

    @override
    def texts(self, record: Record) -> list[str]:
        return [" ".join(self._pair(record)[0])]

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        numbers, frame = label_numbers(names), tokenizer.call_frame
        longest, stride = self.config.data.max_length - frame.size, self.task.doc_stride
        # For a word without any tokens, such as "\u200b" with BERT's tokenizer.
        blank = tokenizer.roles.get("unk", tokenizer.roles.get("pad", 0))
        for record in records:
            words, tags = self._pair(record)
            for tag in tags:
                if tag not in numbers:
                    raise DataError(f"{record.where} has the tag {tag!r}, {NOT_TRAINED}. {suggest(tag, numbers)}")
            # A word that is longer than a row is cut to its beginning.
            pieces = [word[:longest] or [blank] for word in tokenizer.encode_words(words)]
            spans = [WordWindow(0, len(words), 0, len(words))]
            if not self.cuts_sentences:
                spans = word_windows(list(map(len, pieces)), longest, stride)
            for first, stop, own_first, own_stop in spans:
                ids, labels = [], []
                for place in range(first, stop):
                    ids += pieces[place]
                    label = numbers[tags[place]] if own_first <= place < own_stop else IGNORED
                    labels += [label, *[IGNORED] * (len(pieces[place]) - 1)]
                self.num_missing += sum(label != IGNORED for label in labels[longest:])
                before, after = ([IGNORED] * len(special) for special in frame)
                row_ids = [*frame.head, *ids[:longest], *frame.tail]
                yield Row(row_ids, 0, [*before, *labels[:longest], *after], first == 0)

    def metadata(self, record: Record) -> dict[str, Any] | None:
        """Return all tags, if words may be cut off."""
        return {"tags": self._pair(record)[1]} if self.cuts_sentences else None

    @override
    def summarize_lengths(self, rows: Sequence[Row], tokenizer: Tokenizer) -> str:
        longest, missing, self.num_missing = self.config.data.max_length, self.num_missing, 0
        if missing:
            return f"{missing:,} words are past data.max_length={longest}: their tags {COUNT_AS_O}"
        several = sum(not row.first for row in rows)
        return (
            f"sentences past data.max_length={longest} tokens in {several:,} more windows" if several else "none is cut"
        )


class TaggingObjective(LabelObjective):
    """Mean loss over words."""

    by_token = True
    normalizer_names = ("words", "rows", "real")
    metrics = {"tag_loss_nats": "words", "accuracy": "words"}
    loss_terms = ("tag_loss_nats",)

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        return super().normalizers(batch) | {"words": (batch["labels_BL"] != IGNORED).sum().astype(jnp.float32)}

    @override
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        labels_BL = batch["labels_BL"]
        real_BL = labels_BL != IGNORED
        log_probs_BLC = jax.nn.log_softmax(logits)
        chosen_BL = jnp.take_along_axis(log_probs_BLC, jnp.where(real_BL, labels_BL, 0)[..., None], axis=-1)[..., 0]
        return {
            "tag_loss_nats": -(real_BL * chosen_BL).sum(),
            "accuracy": (real_BL * (logits.argmax(-1) == labels_BL)).sum().astype(jnp.float32),
        }


@TASKS.register("tagging", TaggingConfig)
class Tagging(LabelTask):
    """A tag for each word."""

    kinds = ("encoder", "decoder")
    examples_class = WindowExamples
    supports_packing = True
    metric_kind = "tags"
    metric_names = ("accuracy", "precision", "recall", "f1")

    @override
    def make_objective(self) -> TaggingObjective:
        return TaggingObjective()

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "token_classification"

    @classmethod
    @override
    def reader(cls, config: Config) -> TaggingReader:
        return TaggingReader(config)

    @override
    def default_metric(self) -> str:
        return "f1" if mark_entities(self.corpus.labels) else "accuracy"

    @override
    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        kept = super().outputs(model, batch)
        return kept | {"chosen_BL": kept["logits"].argmax(-1).astype(jnp.int32)}

    def _sentences(self, outputs: list[Outputs]) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the (predicted, true) tags of all words of each record."""
        for part, number, rows in self.group_by_record(outputs, "chosen_BL", "labels_BL"):
            chosen, labels = (np.concatenate([row[place] for row in rows]) for place in (1, 2))
            words = labels != IGNORED
            predicted, true = ([self.labels[i] for i in x[words]] for x in (chosen, labels))
            if part in self.corpus.metadata:
                numbers = label_numbers(self.labels)
                true = [self.labels[numbers[tag]] for tag in self.corpus.metadata[part][number]["tags"]]
                predicted += [NO_ENTITY] * (len(true) - len(predicted))
            yield predicted, true

    @override
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs:
        predicted, true = zip(*self._sentences(outputs), strict=True)
        return metrics.MetricInputs("tags", predictions=predicted, references=true)

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per record, for predictions.jsonl."""
        for predicted, true in self._sentences(outputs):
            yield {"label": true, "prediction": predicted}

    @override
    def baseline(self) -> str:
        labels, held = (self.corpus.arrays[part]["labels"] for part in ("train", "validation"))
        majority = int(np.bincount(labels[labels != IGNORED]).argmax())
        return f"always {self.labels[majority]!r}: accuracy {(held[held != IGNORED] == majority).mean():.4g}"

"""Extractive question answering: the span of a context that answers a question, or none (SQuAD 1.1 and 2.0).

As in BERT's fine-tuning (Devlin et al. 2018, sections 4.2 and 4.3), each token gets a score as the start and one as the end of the
answer, and the loss is the mean of both cross-entropies over the row. A context that is too long is read in overlapping windows. The
target of a window without the answer is the row's first token, its summary; so it is for all windows of an unanswerable question.

Windows are merged into questions once all outputs of a part are collected, so the result does not depend on batch size or number of
processes.

Legend: B batch, L length, P tokens of a window's context, K slots for windows of a row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.config import Config, TaskConfig, key
from lm_research.errors import ConfigError, DataError
from lm_research.metrics import answers
from lm_research.models.architecture import Architecture
from lm_research.models.attention.mask import MASKED
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelTask, PairConfig, WindowsConfig
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row
from lm_research.tasks.records import Record
from lm_research.tasks.rows import WindowExamples
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.run_tokenizer import with_special_tokens
from lm_research.tokenizers.windows import Window, best_spans, max_context_tokens, windows, without_space

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringConfig(PairConfig, WindowsConfig):
    """Settings of question answering."""

    not_reading = TaskConfig.not_reading | {"max_answer_length", "n_best", "null_score_diff_threshold"}

    max_answer_length: int = key(30, "Maximum answer length in tokens.", low=1, high=2**16)
    n_best: int = key(
        20, "Number of candidate answers per question to consider and to write to the predictions.", low=1, high=10_000
    )
    null_score_diff_threshold: float = key(
        0.0,
        "Predict no answer if its score minus that of the best answer is above this threshold (SQuAD 2.0).",
    )


class Question(NamedTuple):
    """One question; `answers` are (text, first character) in its context, empty if it is unanswerable."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]


class QuestionReader(Reader):
    """Reads task.pair_key (the question), text_key (the context) and label_key (the answers)."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, QuestionAnsweringConfig.of(config.task)
        if not self.task.pair_key:
            raise ConfigError(
                "config.task.name=question_answering reads three fields: set --config.task.text_key=context, "
                "--config.task.pair_key=question and --config.task.label_key=answers, as configs/finetune/question_answering.py does."
            )
        self.question_key = self.task.pair_key

    @override
    def label_names(self, records: Sequence[Record]) -> list[str]:
        kinds = {bool(self.question(record).answers) for record in records}
        if True not in kinds:
            raise DataError(
                f"{self.task.train} has no answered question: nothing can be learned. Name another file in "
                "--config.task.train, or the right field in --config.task.label_key."
            )
        return [ANSWERABLE] + ([UNANSWERABLE] if False in kinds else [])

    @override
    def texts(self, record: Record) -> list[str]:
        return [self.question(record).question, self.question(record).context]

    @override
    def metadata(self, record: Record) -> dict[str, Any]:
        question = self.question(record)
        return question._asdict() | {"answers": [text for text, _ in question.answers]}

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        tokenizer, read = with_special_tokens(tokenizer), [self.question(record) for record in records]
        questions, length, stride = [one.question for one in read], self.config.data.max_length, self.task.doc_stride
        for record, space in zip(records, max_context_tokens(tokenizer, questions, length), strict=True):
            if space <= stride:
                raise DataError(
                    f"{record.where}: its question leaves {max(0, space)} of data.max_length={length} tokens for the context, not more than "
                    f"the task.doc_stride={stride} by which windows overlap. Shorten the question, raise data.max_length or lower "
                    "task.doc_stride."
                )
        windows_of_each = windows(tokenizer, questions, [one.context for one in read], length, stride)
        for question, parts in zip(read, windows_of_each, strict=True):
            for number, window in enumerate(parts):
                second = int(window.types.argmax()) if window.types.any() else 0
                yield Row(window.ids, second, _target(window, question.answers), number == 0, window.offsets)

    def question(self, record: Record) -> Question:
        """Read and check a record's question; raise a DataError that explains what is wrong."""
        task, where = self.task, record.where
        context = record.text(task.text_key, "text_key")
        question = record.text(self.question_key, "pair_key").strip()
        if not context.strip():
            raise DataError(f"{where} has an empty context (field {task.text_key!r}). Leave the question out.")
        answers = self._answers(record)
        impossible = bool(record.fields.get("is_impossible", not answers))
        if impossible == bool(answers):
            raise DataError(f"{where} has {len(answers)} answers, but is_impossible is {impossible}. Fix one of them.")
        for text, start in answers:
            if not text or context[start : start + len(text)] != text or start < 0:
                found = context.find(text) if text else -1
                hint = f"The answer is at {found}." if found >= 0 else "The context does not contain the answer."
                actual = context[max(0, start) : max(0, start) + max(1, len(text))]
                raise DataError(
                    f"{where}: the answer {text!r} is not at answer_start {start} of the context, which has {actual!r} there. "
                    f"{hint} Fix the record."
                )
        return Question(str(record.fields.get("id", where)), question, context, answers)

    def _answers(self, record: Record) -> list[tuple[str, int]]:
        """Read {"text": [...], "answer_start": [...]} or [{"text": ..., "answer_start": ...}, ...]."""
        value = record.get(self.task.label_key, "label_key")
        wrong = DataError(
            f"{record.where}: field {self.task.label_key!r} is {str(value)[:80]!r}, not answers: a list of objects with text and answer_start "
            "(a character of the context), or one object with two equally long lists of these names. Fix it, or name another field in "
            "--config.task.label_key."
        )
        if isinstance(value, dict):
            texts, starts = value.get("text"), value.get("answer_start")
        elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
            texts, starts = ([one.get(name) for one in value] for name in ("text", "answer_start"))
        else:
            raise wrong
        if not (isinstance(texts, list) and isinstance(starts, list)) or len(texts) != len(starts):
            raise wrong
        if not all(isinstance(text, str) for text in texts) or not all(type(start) is int for start in starts):
            raise wrong
        return list(zip(texts, starts, strict=True))


def _target(window: Window, answers: list[tuple[str, int]]) -> list[int]:
    """Find the first and last token of the first answer in a window; [0, 0] if it is not within the window."""
    inside = np.flatnonzero(window.offsets[:, 0] >= 0)
    if not answers or not len(inside):
        return [0, 0]
    start, end = answers[0][1], answers[0][1] + len(answers[0][0])
    from_P, to_P = window.offsets[inside].T
    first, last = np.searchsorted(to_P, start, side="right"), np.searchsorted(from_P, end, side="left") - 1
    if start < from_P[0] or end > to_P[-1] or first > last:
        return [0, 0]
    return [int(inside[first]), int(inside[last])]


class Span(NamedTuple):
    """Characters [start, end) of a context, and the sum of their start and end scores."""

    score: float
    start: int
    end: int


class SpanPredictions(NamedTuple):
    """The predictions for a question: spans, best first, and the no-answer score (its minimum over windows)."""

    question: dict[str, Any]
    spans: list[Span]
    null: float

    @property
    def margin(self) -> float:
        """The no-answer score minus the best answer's."""
        return self.null - self.spans[0].score if self.spans else math.inf

    def text(self, span: Span) -> str:
        """Return the context's text of a span."""
        return self.question["context"][span.start : span.end]


class SpanObjective(LabelObjective):
    """Mean loss over windows, each with a softmax over its own positions; labels count from the window's first."""

    metrics = {"span_loss_nats": "rows"}
    loss_terms = ("span_loss_nats",)

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        return self.logit_sums(self.logits(model, batch, key), batch)

    @override
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        """Sum the loss over a batch of one window a row, or with slots for windows."""
        if "row_weights_BK" in batch:
            labels_BK2, weights_BK = batch["labels_BK"], batch["row_weights_BK"]
        else:
            labels_BK2, weights_BK = batch["labels_B"][:, None], batch["row_weights_B"][:, None]
        inside_BKL = batch["segments_BL"][:, None] == 1 + jnp.arange(weights_BK.shape[1])[:, None]
        normalizers_BK2 = jax.nn.logsumexp(jnp.where(inside_BKL[..., None], logits[:, None], MASKED), axis=2)
        place_BK2 = jnp.argmax(inside_BKL, -1)[..., None] + labels_BK2
        log_probs_BK2 = jnp.take_along_axis(logits, place_BK2, axis=1) - normalizers_BK2
        return {"span_loss_nats": -(weights_BK * log_probs_BK2.mean(-1)).sum()}


@TASKS.register("question_answering", QuestionAnsweringConfig)
class QuestionAnswering(LabelTask):
    """Spans of a context that answer questions, scored as SQuAD's scripts do (metrics/answers.py)."""

    kinds = ("encoder",)
    examples_class = WindowExamples
    supports_packing = True
    metric_kind = "answers"
    metric_names: tuple[str, ...] = ("exact_match", "f1")
    null_names = (
        "has_answer_exact_match",
        "has_answer_f1",
        "no_answer_exact_match",
        "no_answer_f1",
        "best_f1",
        "best_null_threshold",
    )

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        held_out = [question for part in corpus.metadata.values() for question in part]
        self.null = UNANSWERABLE in corpus.labels or not all(question["answers"] for question in held_out)
        if self.null:
            self.metric_names = QuestionAnswering.metric_names + self.null_names
        self.settings = QuestionAnsweringConfig.of(config.task)
        super().__init__(config, corpus)

    @override
    def make_objective(self) -> SpanObjective:
        return SpanObjective()

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "span"

    @classmethod
    @override
    def reader(cls, config: Config) -> QuestionReader:
        return QuestionReader(config)

    @classmethod
    @override
    def num_labels(cls, config: Config, corpus: LabeledCorpus) -> int:
        return 2

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        stride = cls.reader(config).task.doc_stride
        if stride >= config.data.max_length:
            raise ConfigError(
                f"config.task.doc_stride={stride} is an overlap of whole windows of data.max_length={config.data.max_length} tokens. Lower it, "
                "or raise data.max_length."
            )

    @override
    def default_metric(self) -> str:
        return "f1"

    def span_predictions(self, outputs: list[Outputs]) -> Iterator[SpanPredictions]:
        """Yield the predictions for each question of a part, in order."""
        for part, question, rows in self.group_by_record(outputs, "logits"):
            store, offsets = self.corpus.parts[part], self.corpus.arrays[part]["offsets"]
            starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
            windows = [(logits, offsets[starts[row] : starts[row + 1]]) for row, logits in rows]
            yield self._search(self.corpus.metadata[part][question], windows)

    def _search(self, question: dict[str, Any], windows: list[tuple[np.ndarray, np.ndarray]]) -> SpanPredictions:
        """Find the best spans of at most task.max_answer_length tokens over all windows, each once with its highest score."""
        scores: dict[tuple[int, int], float] = {}
        longest, n_best, null = self.settings.max_answer_length, self.settings.n_best, math.inf
        for logits_L2, offsets_L2 in windows:
            null = min(null, float(logits_L2[0].sum()))
            place_P = np.flatnonzero(offsets_L2[:, 0] >= 0)
            start_P, end_P = logits_L2[place_P].T.astype(np.float64)
            spans = best_spans(start_P, end_P, longest)
            for first, last, score in itertools.islice(spans, 2 * n_best):
                if not math.isfinite(score):
                    break
                begin, end = int(offsets_L2[place_P[first], 0]), int(offsets_L2[place_P[last], 1])
                begin = without_space(question["context"], begin, end)
                scores[begin, end] = max(scores.get((begin, end), -np.inf), score)
        found = [Span(score, *place) for place, score in scores.items()]
        return SpanPredictions(
            question, sorted(found, key=lambda span: (-span.score, span.start, span.end))[:n_best], null
        )

    def _answer(self, found: SpanPredictions) -> str:
        if not found.spans or self.null and found.margin > self.settings.null_score_diff_threshold:
            return ""
        return found.text(found.spans[0])

    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs:
        """Collect the answers; data with unanswerable questions also has `best_f1`, at `best_null_threshold`."""
        found = list(self.span_predictions(outputs))
        return metrics.MetricInputs(
            "answers",
            predictions=[self._answer(one) for one in found],
            references=[one.question["answers"] for one in found],
            best_answers=[one.text(one.spans[0]) if one.spans else "" for one in found],
            margins=[one.margin for one in found],
            null=self.null,
        )

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per question, for predictions.jsonl; task.null_score_diff_threshold applies to `null_margin`."""
        for found in self.span_predictions(outputs):
            golds, answer = found.question["answers"], self._answer(found)
            logits = np.array([span.score for span in found.spans] + ([found.null] if self.null else []))
            probs = np.exp(logits - logits.max(initial=-np.inf))
            names = [(found.text(span), span.start, span.end) for span in found.spans] + [("", 0, 0)] * self.null
            listed = [
                {
                    "answer": text,
                    "start": start,
                    "end": end,
                    "score": round(float(score), 4),
                    "probability": round(float(prob), 6),
                }
                for (text, start, end), score, prob in zip(names, logits, probs / probs.sum(), strict=True)
            ]
            yield {
                "id": found.question["id"],
                "question": found.question["question"],
                "answers": golds,
                "prediction": answer,
                "exact_match": answers.exact_match(answer, golds, self.null),
                "f1": answers.f1(answer, golds, self.null),
                **({"null_margin": round(found.margin, 4)} if self.null else {}),
                "n_best": sorted(listed, key=lambda one: -one["score"]),
            }

    @override
    def baseline(self) -> str:
        none = [not question["answers"] for question in self.corpus.metadata["validation"]]
        return f"never an answer: f1 {sum(none) / len(none):.4g}"

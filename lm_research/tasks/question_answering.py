"""Extractive question answering: the span of a context that answers a question, or none (SQuAD 1.1 and 2.0).

As in BERT's fine-tuning (Devlin et al. 2018, sections 4.2 and 4.3): each token gets a score as start and one as end of the
answer, the loss is the mean of both cross-entropies over the row. A context that is too long is read in windows that overlap;
a window without the answer points to the row's first token, its summary, and so does every window of a question without one.

Windows become questions again when all outputs of a part are there, so neither batch size nor number of processes plays a part.

Legend: B batch, L length, P tokens of a window's context, K tokens of the longest answer.
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

from lm_research import metrics
from lm_research.config import Config, TaskConfig, key
from lm_research.errors import ConfigError, DataError
from lm_research.metrics import answers
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelTask, PairConfig, WindowExamples, WindowsConfig
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row
from lm_research.tasks.records import Record
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.run_tokenizer import with_special_tokens
from lm_research.tokenizers.windows import Window, best_spans, max_context_tokens, windows, without_space

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringConfig(PairConfig, WindowsConfig):
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
    """One question; `answers` are (text, first character) in its context, none where it has none."""

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

    def label_names(self, records: Sequence[Record]) -> list[str]:
        kinds = {bool(self.question(record).answers) for record in records}
        if True not in kinds:
            raise DataError(
                f"{self.task.train} has no question with an answer: nothing can be learned. Name another file in "
                "--config.task.train, or the right field in --config.task.label_key."
            )
        return [ANSWERABLE] + ([UNANSWERABLE] if False in kinds else [])

    def texts(self, record: Record) -> list[str]:
        return [self.question(record).question, self.question(record).context]

    def metadata(self, record: Record) -> dict[str, Any]:
        question = self.question(record)
        return question._asdict() | {"answers": [text for text, _ in question.answers]}

    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        tokenizer, given = with_special_tokens(tokenizer), [self.question(record) for record in records]
        asked, length, stride = [one.question for one in given], self.config.data.max_length, self.task.doc_stride
        for record, room in zip(records, max_context_tokens(tokenizer, asked, length), strict=True):
            if room <= stride:
                raise DataError(
                    f"{record.where}: beside its question a row of data.max_length={length} tokens has room for {max(0, room)} of the "
                    f"context, no more than the task.doc_stride={stride} that neighboring windows share. Shorten the question, "
                    "raise data.max_length or lower task.doc_stride."
                )
        read = windows(tokenizer, asked, [one.context for one in given], length, stride)
        for one, parts in zip(given, read, strict=True):
            for number, window in enumerate(parts):
                second = int(window.types.argmax()) if window.types.any() else 0
                yield Row(window.ids, second, _target(window, one.answers), number == 0, window.offsets)

    def question(self, record: Record) -> Question:
        """A record's question; raises a DataError that says what is wrong with it."""
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
                hint = f"It stands at {found}." if found >= 0 else "The context does not have it."
                there = context[max(0, start) : max(0, start) + max(1, len(text))]
                raise DataError(
                    f"{where}: the answer {text!r} is not at answer_start {start} of the context, where {there!r} stands. "
                    f"{hint} Fix the record."
                )
        return Question(str(record.fields.get("id", where)), question, context, answers)

    def _answers(self, record: Record) -> list[tuple[str, int]]:
        """From {"text": [...], "answer_start": [...]} or [{"text": ..., "answer_start": ...}, ...]."""
        value = record.get(self.task.label_key, "label_key")
        wrong = DataError(
            f"{record.where}: field {self.task.label_key!r} is {str(value)[:80]!r}, not answers: a list of objects with text and answer_start "
            "(a character of the context), or one object with two lists of these names and of one length. Fix it, or name "
            "another field in --config.task.label_key."
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
    """Places of the first and last token of the first answer; [0, 0] if it does not lie within the window."""
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
    """Characters [start, end) of a context, and the sum of the two scores."""

    score: float
    start: int
    end: int


class SpanPredictions(NamedTuple):
    """What was found for a question: spans, best first; the score of none (its smallest over windows)."""

    question: dict[str, Any]
    spans: list[Span]
    null: float

    @property
    def margin(self) -> float:
        """Score of no answer minus that of the best."""
        return self.null - self.spans[0].score if self.spans else math.inf

    def text(self, span: Span) -> str:
        return self.question["context"][span.start : span.end]


class SpanObjective(LabelObjective):
    """Mean loss over windows."""

    metrics = {"span_loss_nats": "rows"}
    loss_terms = ("span_loss_nats",)

    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        # Without padding, whose amount goes with the batch.
        real_BL1 = (batch["segments_BL"] > 0)[..., None]
        shares_BL2 = jax.nn.log_softmax(jnp.where(real_BL1, logits, jnp.finfo(logits.dtype).min), axis=1)
        chosen_B2 = jnp.take_along_axis(shares_BL2, batch["labels_B"][:, None, :], axis=1)[:, 0]
        return {"span_loss_nats": -(batch["row_weights_B"] * chosen_B2.mean(-1)).sum()}


@TASKS.register("question_answering", QuestionAnsweringConfig)
class QuestionAnswering(LabelTask):
    """Spans of a context; scores over questions, as SQuAD's scripts have them (metrics/answers.py)."""

    kinds = ("encoder",)
    examples_class = WindowExamples
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
        held_out = [question for part in corpus.kept.values() for question in part]
        self.null = UNANSWERABLE in corpus.labels or not all(question["answers"] for question in held_out)
        if self.null:
            self.metric_names = QuestionAnswering.metric_names + self.null_names
        self.settings = QuestionAnsweringConfig.of(config.task)
        super().__init__(config, corpus)

    def make_objective(self) -> SpanObjective:
        return SpanObjective()

    @classmethod
    def head(cls, config: Config) -> str:
        return "span"

    @classmethod
    def reader(cls, config: Config) -> QuestionReader:
        return QuestionReader(config)

    @classmethod
    def num_labels(cls, config: Config, corpus: LabeledCorpus) -> int:
        return 2

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        stride = cls.reader(config).task.doc_stride
        if stride >= config.data.max_length:
            raise ConfigError(
                f"config.task.doc_stride={stride} leaves windows of data.max_length={config.data.max_length} tokens no room to move. "
                "Lower it, or raise data.max_length."
            )

    def default_metric(self) -> str:
        return "f1"

    def found(self, outputs: list[Outputs]) -> Iterator[SpanPredictions]:
        """What was found for each question of a part, in order."""
        for part, question, rows in self.by_record(outputs, "logits"):
            store, arrays, kept = self.corpus.parts[part], self.corpus.arrays[part], self.corpus.kept[part]
            starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
            yield self._search(
                kept[question], [(logits, arrays["offsets"][starts[row] : starts[row + 1]]) for row, logits in rows]
            )

    def _search(self, question: dict[str, Any], windows: list[tuple[np.ndarray, np.ndarray]]) -> SpanPredictions:
        """The best spans of at most task.max_answer_length tokens over all windows; each once, with its highest score."""
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

    def scored(self, outputs: list[Outputs]) -> metrics.Scored:
        """Over questions; of data with unanswerable ones also `best_f1`, by the null threshold `best_null_threshold`."""
        found = list(self.found(outputs))
        return metrics.Scored(
            "answers",
            predictions=[self._answer(one) for one in found],
            references=[one.question["answers"] for one in found],
            best_answers=[one.text(one.spans[0]) if one.spans else "" for one in found],
            margins=[one.margin for one in found],
            null=self.null,
        )

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """One prediction a question, for predictions.jsonl; `null_margin` is what task.null_score_diff_threshold is compared with."""
        for found in self.found(outputs):
            golds, answer = found.question["answers"], self._answer(found)
            logits = np.array([span.score for span in found.spans] + ([found.null] if self.null else []))
            shares = np.exp(logits - logits.max(initial=-np.inf))
            names = [(found.text(span), span.start, span.end) for span in found.spans] + [("", 0, 0)] * self.null
            listed = [
                {
                    "answer": text,
                    "start": start,
                    "end": end,
                    "score": round(float(score), 4),
                    "probability": round(float(share), 6),
                }
                for (text, start, end), score, share in zip(names, logits, shares / shares.sum(), strict=True)
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

    def baseline(self) -> str:
        none = [not question["answers"] for question in self.corpus.kept["validation"]]
        return f"never an answer: f1 {sum(none) / len(none):.4g}"

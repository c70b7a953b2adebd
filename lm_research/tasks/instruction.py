"""Instruction tuning of causal models: the loss is on answers only (Ouyang et al. 2022, section 3.5, supervised fine-tuning).

A record is one of
    a prompt and an answer (task.text_key and label_key), used unchanged: any space or line between them must be in the data;
    Alpaca's columns instruction, input (may be empty or missing) and output (Taori et al. 2023), read as a conversation of two turns;
    messages, a list of {"role", "content"} and whatever else the chat template reads, optionally with `tools`: every turn of the
        assistant is an answer.
The tokenizer's chat_template renders conversations; without one, the plain template of tokenizers/chat_template.py does, and is saved with
the fine-tuned model. Nothing is added before or after a conversation. The loss covers the template's generation blocks or, if it has none,
all that the model must generate after the prompt of each answer (see tokenizers/chat_answers.py). In the latter case, and for a prompt and
an answer, each answer ends with the end token. Records longer than data.max_length are cut at the end; the log counts them.

A row holds one record or, with data.packing, several that do not attend to each other. task.predict_with_generate sets when held-out
records are decoded; the prompt is all that precedes the last answer.

Legend: B batch, L length, P slots of prompts, I items of a batch, T tokens of a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from typing_extensions import override

from lm_research.common.rounding import padded_length
from lm_research.config import Config
from lm_research.data.sampler import Examples
from lm_research.data.store import TokenStore
from lm_research.decoding.jit_generate import plain_prompts
from lm_research.decoding.prompts import Prompts, uses_document_separator
from lm_research.errors import ConfigError, DataError, UserError
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import Batch
from lm_research.objectives.causal_lm import NextTokenOfDecoder
from lm_research.objectives.packing import describe_rows, one_per_row
from lm_research.objectives.ragged import copy_pieces, exclusive_cumsum, mark_pieces
from lm_research.objectives.seq2seq import Seq2SeqConfig
from lm_research.tasks.base import TASKS
from lm_research.tasks.dataset import Reader, Row
from lm_research.tasks.generation import GenerationConfig, GenerationTask
from lm_research.tasks.records import Record
from lm_research.tasks.rows import SharedRows, slots_of
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.chat_answers import answer_ids, find_answers
from lm_research.tokenizers.chat_template import PLAIN, TEMPLATE, chat_template
from lm_research.tokenizers.special_tokens import continuation_ids, text_ids

MESSAGES, TOOLS, ALPACA = "messages", "tools", ("instruction", "output")


class InstructionReader(Reader):
    """Reads prompts and answers, Alpaca's columns, or messages."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, GenerationConfig.of(config.task)

    @override
    def is_valid(self, record: Record) -> bool:
        found = self.metadata(record)
        return bool(found[MESSAGES] if MESSAGES in found else found["answer"].strip())

    @override
    def texts(self, record: Record) -> list[str]:
        found = self.metadata(record)
        return [one.get("content") or "" for one in found[MESSAGES]] if MESSAGES in found else list(found.values())

    def metadata(self, record: Record) -> dict[str, Any]:
        """Check a record and return {"prompt", "answer"}, or {"messages"} up to the last of the assistant and, if given, "tools"."""
        task, fields = self.task, record.fields
        if task.text_key in fields or not (MESSAGES in fields or set(ALPACA) <= set(fields)):
            if task.text_key not in fields and "." not in task.text_key:
                raise DataError(
                    f"{record.where} has neither a prompt (field {task.text_key!r}, --config.task.text_key) nor {MESSAGES!r} nor Alpaca's "
                    f"{' and '.join(map(repr, ALPACA))}, but {', '.join(map(repr, fields)) or 'nothing'}. Fix it, or name the right field."
                )
            return {
                "prompt": record.text(task.text_key, "text_key"),
                "answer": record.text(task.label_key, "label_key"),
            }
        if MESSAGES in fields:
            return {MESSAGES: self._messages(record)} | ({TOOLS: fields[TOOLS]} if fields.get(TOOLS) else {})
        extra = "" if fields.get("input") is None else record.text("input", "text_key")
        given = "\n\n".join(filter(None, [record.text("instruction", "text_key"), extra]))
        answer = {"role": "assistant", "content": record.text("output", "label_key")}
        return {MESSAGES: [{"role": "user", "content": given}, answer]}

    def _messages(self, record: Record) -> list[dict[str, Any]]:
        found = record.fields[MESSAGES]
        if not (isinstance(found, list) and all(map(_is_message, found))):
            raise DataError(
                f"{record.where}: {MESSAGES!r} is {str(found)[:80]!r}, not a list of objects with role and content. Fix it."
            )
        last = max((place for place, one in enumerate(found) if one["role"] == "assistant"), default=-1)
        if last < 1:
            raise DataError(
                f"{record.where}: {MESSAGES!r} has no answer of the role 'assistant' after another message: nothing can be learned. Leave "
                "it out."
            )
        return [dict(one) for one in found[: last + 1]]

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        for record in records:
            parts = self.parts(record, tokenizer)
            parts[0] = parts[0] or [tokenizer.eos_id]
            for number in range(len(parts) - 2, 1, -2):  # answers with nothing between them become one
                if not parts[number]:
                    parts[number - 1 : number + 2] = [parts[number - 1] + parts[number + 1]]
            ids = np.concatenate([np.array(part, np.int32) for part in parts])
            yield Row(ids, 0, 0, cuts=tuple(np.cumsum([len(part) for part in parts])[:-1].tolist()))

    def parts(self, record: Record, tokenizer: Tokenizer) -> list[list[int]]:
        """Encode a record as alternating prompts and answers: the first prompt, its answer, the text up to the next answer, and so on."""
        found = self.metadata(record)
        if MESSAGES not in found:
            prompt, answer = found["prompt"], found["answer"]
            if not answer.strip():
                raise DataError(
                    f"{record.where} has an empty answer (field {self.task.label_key!r}). Leave it out, or let "
                    "--config.data.on_error=skip do that."
                )
            head = prompt_head(tokenizer)
            return _with_end_tokens(
                [[*head, *text_ids(tokenizer, prompt)], continuation_ids(tokenizer, prompt, answer)], tokenizer
            )
        try:
            answers = find_answers(tokenizer, found[MESSAGES], found.get(TOOLS))
        except UserError as error:
            raise DataError(f"{record.where}: {error}") from error
        parts = answer_ids(tokenizer, answers)
        if not any(parts[1::2]):
            raise DataError(
                f"{record.where}: the chat_template renders none of the answers, so nothing can be learned. Leave the record out."
            )
        return parts if answers.marked else _with_end_tokens(parts, tokenizer)

    @override
    def summarize_lengths(self, rows: Sequence[Row], tokenizer: Tokenizer) -> str:
        longest = self.config.data.max_length  # of inputs; the last target is one token further
        cut = sum(len(row.ids) > longest + 1 for row in rows)
        unanswered = sum(row.cuts[0] > longest for row in rows)
        return f"{cut:,} of them cut to data.max_length={longest} tokens, {unanswered:,} before any answer"


def prompt_head(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that `generate` puts before a causal model's prompt."""
    return [tokenizer.sep_id] if uses_document_separator(tokenizer) else list(tokenizer.frame.head)


def _is_message(one: Any) -> bool:
    """Check that a message has a role and either a text or tool calls."""
    if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
        return False
    return isinstance(one.get("content"), str) or one.get("content") is None and bool(one.get("tool_calls"))


def _with_end_tokens(parts: list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Append the end token to each answer."""
    end = tokenizer.eos_id
    return [part if number % 2 == 0 or part[-1:] == [end] else [*part, end] for number, part in enumerate(parts)]


class AnswerExamples(Examples):
    """Records of a store whose documents alternate prompts and answers; the weights select answers."""

    def __init__(self, store: TokenStore, pad_id: int, config: Config, first: int, max_new_tokens: int) -> None:
        """Set up rows; `first` is the number of the first record, and prompts leave space for `max_new_tokens` (0: no decoding)."""
        documents, sentences = np.asarray(store.document_starts), np.asarray(store.sentence_starts)
        self.store, self.pad_id, self.first, self.max_new_tokens = store, pad_id, first, max_new_tokens
        self.max_length, self.starts = config.data.max_length, sentences[documents[:-1]]
        self.sizes = np.minimum(np.diff(sentences[documents]) - 1, self.max_length)  # inputs: all but the last token
        number = np.arange(len(sentences) - 1) - np.repeat(documents[:-1], np.diff(documents))
        self.is_answer = np.repeat(number % 2 == 1, np.diff(sentences))
        self.prompts = sentences[documents[1:] - 1] - self.starts  # tokens before the last answer
        self.num_examples = len(self.sizes)
        used = describe_rows(self.sizes, self.max_length, one_per_row(len(self.sizes)))
        self.notes = f"{used}; {self.is_answer.mean():.1%} of tokens are answers"

    @override
    def example_lengths(self) -> np.ndarray | None:
        return self.sizes

    @override
    def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch(epoch_B, index_B, self.width(index_G))

    def width(self, index_B: np.ndarray) -> tuple[int, int]:
        """Compute L and P of a global batch."""
        item_B = np.maximum(index_B, 0)
        length, prompt = (int(lengths[item_B].max(initial=1)) for lengths in (self.sizes, self.prompts))
        return min(self.max_length, padded_length(length)), min(
            self.max_length - self.max_new_tokens, padded_length(prompt)
        )

    def batch(
        self, epoch_B: np.ndarray, index_B: np.ndarray, width: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Make a batch of conversations.

        It has tokens, targets, positions, segments [B, L] int32; weights [B, L], row_weights [B] float32; record [B]; and, if records are
        decoded, decoded [B], prompt_tokens [B, P], padded on the left, and prompt_start [B].
        """
        length, slots = width or (self.max_length, self.max_length - self.max_new_tokens)
        row_I = np.flatnonzero(index_B >= 0)
        item_I = index_B[row_I]
        starts_I = self.starts[item_I]
        batch = self.make_rows(len(index_B), row_I, item_I, length)
        batch["row_weights_B"] = (index_B >= 0).astype(np.float32)
        batch["record_B"] = (self.first + np.maximum(index_B, 0)).astype(np.int32)
        if self.max_new_tokens:
            kept_I = np.minimum(self.prompts[item_I], slots)  # a longer prompt keeps its end
            batch["decoded_B"], batch["prompt_start_B"] = (
                batch["row_weights_B"],
                np.full(len(index_B), slots - 1, np.int32),
            )
            batch["prompt_start_B"][row_I] = slots - kept_I
            batch["prompt_tokens_BP"] = np.full((len(index_B), slots), self.pad_id, np.int32)
            copy_pieces(
                batch["prompt_tokens_BP"],
                row_I,
                slots - kept_I,
                self.store.tokens,
                starts_I + self.prompts[item_I] - kept_I,
                kept_I,
            )
        return batch

    def make_rows(self, rows: int, row_I: np.ndarray, item_I: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Make the rows of some records, row after row: tokens, targets, positions, segments [B, L] int32, and weights [B, L] float32."""
        sizes_I, starts_I = self.sizes[item_I], self.starts[item_I]
        place = (row_I, exclusive_cumsum(sizes_I, row_I))
        names = ("targets_BL", "segments_BL", "positions_BL")
        batch: dict[str, np.ndarray] = {name: np.zeros((rows, length), np.int32) for name in names}
        batch["tokens_BL"] = np.full((rows, length), self.pad_id, np.int32)
        batch["weights_BL"] = np.zeros((rows, length), np.float32)
        copy_pieces(batch["tokens_BL"], *place, self.store.tokens, starts_I, sizes_I)
        copy_pieces(batch["targets_BL"], *place, self.store.tokens, starts_I + 1, sizes_I)
        copy_pieces(batch["weights_BL"], *place, self.is_answer, starts_I + 1, sizes_I)
        mark_pieces(batch["segments_BL"], *place, sizes_I, 1 + exclusive_cumsum(np.ones_like(row_I), row_I))
        mark_pieces(batch["positions_BL"], *place, sizes_I, None)
        return batch


class SharedAnswers(SharedRows, AnswerExamples):
    """Conversations that share rows as long as the longest, rounded up."""

    def __init__(self, store: TokenStore, pad_id: int, config: Config) -> None:
        super().__init__(store, pad_id, config, first=0, max_new_tokens=0)
        self.capacity = self.max_length = self.width(np.arange(self.num_examples))[0]
        answers = f"{self.is_answer.mean():.1%} of tokens are answers"
        self.notes = f"records share rows of {self.max_length} tokens; {answers}"

    @override
    def example_lengths(self) -> None:
        return None  # all rows are equally long

    @override
    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch like `make_rows`."""
        row_I, _, item_I = slots_of(index_BK)
        return self.make_rows(len(index_BK), row_I, item_I, self.max_length)


@TASKS.register("instruction", GenerationConfig)
class Instruction(GenerationTask):
    """Answers to prompts: mean loss over the tokens of answers, exact match of decoded answers."""

    kinds = ("decoder",)
    metric_names = ("exact_match",)

    @override
    def make_objective(self) -> NextTokenOfDecoder:
        return NextTokenOfDecoder(self.settings.label_smoothing)

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "causal_lm"

    @classmethod
    @override
    def reader(cls, config: Config) -> InstructionReader:
        return InstructionReader(config)

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        target_length = Seq2SeqConfig.of(config.objective).target_length or 0
        if target_length >= config.data.max_length:
            raise ConfigError(
                f"objective.target_length={target_length} leaves no space for prompts in data.max_length={config.data.max_length} tokens. "
                "Lower the first or raise the second."
            )

    @property
    @override
    def max_new_tokens(self) -> int:
        return Seq2SeqConfig.of(self.config.objective).target_length or self.config.data.max_length // 2

    @override
    def examples(self, store: TokenStore, purpose: str) -> AnswerExamples:
        if self.config.data.packing and purpose == "train":
            return SharedAnswers(store, self.pad_id, self.config)
        first = self.corpus.first_row_number(self.corpus.part_of(store))
        max_new_tokens = self.max_new_tokens if self.should_generate(purpose) else 0
        return AnswerExamples(store, self.pad_id, self.config, first, max_new_tokens)

    @override
    def prompts(self, batch: Batch) -> Prompts[jax.Array]:
        return plain_prompts(batch["prompt_tokens_BP"], batch["prompt_start_B"], batch["decoded_B"] > 0)

    @override
    def record_texts(self, metadata: dict[str, Any]) -> dict[str, Any]:
        if MESSAGES in metadata:
            *context, answer = metadata[MESSAGES]
            return {MESSAGES: context, "answer": answer.get("content") or ""}
        return {"prompt": metadata["prompt"], "answer": metadata["answer"]}

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Add the plain chat template, if it rendered the conversations."""
        files = super().files(arch)
        if any(MESSAGES in metadata for metadata in self.corpus.metadata["validation"]) and not chat_template(
            self.tokenizer
        ):
            files[TEMPLATE] = PLAIN.encode()
        return files

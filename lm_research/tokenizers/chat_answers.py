"""Where the answers of a conversation stand in the text that its chat template makes of it.

The template says so itself by `{% generation %}` blocks. Of another template it is found, and proved, by its own writing: the text
begins with what is rendered up to an answer, and with what is rendered up to its end; or, where a template rewrites earlier
turns (those for reasoning models drop earlier thinking), with another text in the answer's place the template writes the same
before and behind it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_research.errors import UserError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.chat_template import PLAIN, Message, Spans, chat_spans, chat_template, chat_text, end_token

_ASSISTANT = "assistant"


class Answers(NamedTuple):
    """The text of a conversation, the characters [from, to) of its answers, and whether the template marked these itself."""

    text: str
    spans: Spans
    marked: bool


def find_answers(tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Answers:
    """The text of a conversation and where its answers stand in it, each to the end token, where the template writes one.

    Args:
      tokenizer: its template counts, or the plain one.
      messages: of which the last is an answer.
      tools: for the template.

    Raises:
      UserError: the template does not take the messages; or it cannot be told which part of its text an answer is.
    """
    template = chat_template(tokenizer) or PLAIN
    text, marked = chat_spans(tokenizer, messages, False, template, tools)
    if marked:
        return Answers(text, [span for span in marked if span[0] < span[1]], True)
    finder, spans = _Finder(tokenizer, messages, tools, template, text), list[tuple[int, int]]()
    for place, message in enumerate(messages):
        if message["role"] == _ASSISTANT:
            span = finder.span(place, spans[-1][1] if spans else 0)
            if span is None:
                raise UserError(
                    "The chat_template does not keep what comes before an answer as it was, so it cannot be told which tokens are the "
                    "answer's. Give records with a prompt and an answer instead, or mark what the model writes in the template by "
                    "{% generation %} and {% endgeneration %}."
                )
            spans.append(span)
    return Answers(text, spans, False)


class _Finder:
    """Looks for the answers of one conversation in its text."""

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None, template: str, text: str
    ) -> None:
        self.tokenizer, self.messages, self.tools, self.template, self.text = (
            tokenizer,
            messages,
            tools,
            template,
            text,
        )
        self.end = end_token(tokenizer)

    def span(self, place: int, done: int) -> tuple[int, int] | None:
        """The answer of a message, behind character `done` of the text; None where there is no proof."""
        opening = self._render(self.messages[:place], True) if place else None
        start = len(opening) if opening is not None and self.text.startswith(opening) else None
        if start is not None and start >= done:
            whole = self._render(self.messages[: place + 1])
            if whole is not None and self.text.startswith(whole) and len(whole) >= start:
                answer = whole[start:]
                if not self.end or answer.count(self.end) < 2:  # an answer may itself name the end token
                    return start, start + self._closed(answer)
        return self._by_another(place, done, start)

    def _by_another(self, place: int, done: int, start: int | None) -> tuple[int, int] | None:
        """By what stands around another text in the answer's place."""
        other = self._unused()
        swapped = [*self.messages[:place], {**self.messages[place], "content": other}, *self.messages[place + 1 :]]
        around = (self._render(swapped) or "").split(other)
        alone = (self._render(swapped[: place + 1]) or "").split(other)
        if len(around) != 2 or len(alone) != 2:
            return None
        (before, behind), closing = around, alone[1]
        closing = closing[: self._closed(closing)]
        content = len(self.text) - len(behind)  # where the answer's own text ends
        if start is None or start < done:
            start = len(before) if self.text.startswith(before) else -1
        good = done <= start <= content and self.text.endswith(behind) and behind.startswith(closing)
        return (start, content + len(closing)) if good else None

    def _closed(self, answer: str) -> int:
        """Characters up to the end token, or all but white space at the end."""
        return answer.find(self.end) + len(self.end) if self.end and self.end in answer else len(answer.rstrip())

    def _unused(self) -> str:
        """Digits that the text does not have; no template has a reason to change them."""
        number = 0
        while (digits := str(int(hashlib.sha256(bytes([number])).hexdigest(), 16))[:24]) in self.text:
            number += 1
        return digits

    def _render(self, messages: Sequence[Message], opens: bool = False) -> str | None:
        try:
            return chat_text(self.tokenizer, messages, opens, self.template, self.tools)
        except UserError:  # some templates refuse half of a conversation
            return None


def answer_ids(tokenizer: Tokenizer, answers: Answers) -> list[list[int]]:
    """Ids of a conversation up to the end of its last answer, in parts: before an answer, the answer, before the next, and so on.

    The whole text is tokenized at once, and a token that has a character of an answer is the answer's, as transformers counts them.
    """
    if tokenizer.supports_offsets:
        encoded = tokenizer(answers.text, add_special_tokens=False, return_offsets=True)
        ids, offsets = encoded["input_ids"][0].tolist(), encoded["offset_mapping"][0]
        inside = [np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start)) for start, end in answers.spans]
        edges = [edge for own in inside if len(own) for edge in (int(own[0]), int(own[-1]) + 1)]
        edges = np.maximum.accumulate([0, *edges]).tolist()  # two answers that share a token
        parts = [ids[start:end] for start, end in itertools.pairwise(edges)]
    else:
        edges = [0, *itertools.chain.from_iterable(answers.spans)]
        texts = [answers.text[start:end] for start, end in itertools.pairwise(edges)]
        parts = tokenizer.encode_batch(texts[:1]) + tokenizer.encode_after(texts[1:])
    for number in range(len(parts) - 1, 0, -2):  # answers without a token are none
        if not parts[number]:
            parts[number - 1 : number + 2] = [list(itertools.chain(*parts[number - 1 : number + 2]))]
    return parts[: len(parts) // 2 * 2]

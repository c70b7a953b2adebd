"""Locating the assistant's answers in the text that a chat template renders.

A template with `{% generation %}` blocks marks them itself. For other templates the answer is located by rendering prefixes of the
conversation: the whole text must begin with the rendering up to the answer, and with the rendering through its end. Some templates
rewrite earlier turns (those of reasoning models drop earlier thinking); then the answer is replaced by another text, and what surrounds
that text must be the same as what surrounds the answer.
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
    """The text of a conversation, the characters [start, end) of its answers, and whether the template marked them itself."""

    text: str
    spans: Spans
    marked: bool


def find_answers(tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Answers:
    """Render a conversation and locate its answers, each through its end token if the template writes one.

    Args:
      tokenizer: provides the template; PLAIN is used if it has none.
      messages: the conversation, which ends with an answer.
      tools: JSON schemas for the template.

    Raises:
      UserError: the template does not take the messages, or an answer cannot be located.
    """
    template = chat_template(tokenizer) or PLAIN
    text, marked = chat_spans(tokenizer, messages, False, template, tools)
    if marked:
        return Answers(text, [span for span in marked if span[0] < span[1]], True)
    finder, spans = _Finder(tokenizer, messages, tools, template, text), list[tuple[int, int]]()
    for index, message in enumerate(messages):
        if message["role"] == _ASSISTANT:
            span = finder.span(index, spans[-1][1] if spans else 0)
            if span is None:
                raise UserError(
                    "The chat_template changes the text before an answer when the answer is added, so the tokens of the answer cannot be "
                    "located. Use examples with a prompt and an answer instead, or put {% generation %} and {% endgeneration %} around "
                    "the answer in the template."
                )
            spans.append(span)
    return Answers(text, spans, False)


class _Finder:
    """A search for the answers of one conversation in its text."""

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None, template: str, text: str
    ) -> None:
        self.tokenizer, self.messages, self.tools = tokenizer, messages, tools
        self.template, self.text, self.end = template, text, end_token(tokenizer)

    def span(self, index: int, done: int) -> tuple[int, int] | None:
        """The characters [start, end) of a message by its index, after character `done`; None if they cannot be located."""
        opening = self._render(self.messages[:index], True) if index else None
        start = len(opening) if opening is not None and self.text.startswith(opening) else None
        if start is not None and start >= done:
            whole = self._render(self.messages[: index + 1])
            if whole is not None and self.text.startswith(whole) and len(whole) >= start:
                answer = whole[start:]
                if not self.end or answer.count(self.end) < 2:  # an answer may itself name the end token
                    return start, start + self._closed(answer)
        return self._by_substitution(index, done, start)

    def _by_substitution(self, index: int, done: int, start: int | None) -> tuple[int, int] | None:
        """Locate the answer by the text that surrounds a placeholder in its place."""
        placeholder = self._unused_text()
        swapped = [
            *self.messages[:index],
            {**self.messages[index], "content": placeholder},
            *self.messages[index + 1 :],
        ]
        full = (self._render(swapped) or "").split(placeholder)
        prefix = (self._render(swapped[: index + 1]) or "").split(placeholder)
        if len(full) != 2 or len(prefix) != 2:
            return None
        (before, after), closing = full, prefix[1]
        closing = closing[: self._closed(closing)]
        content = len(self.text) - len(after)  # where the answer's content ends
        if start is None or start < done:
            start = len(before) if self.text.startswith(before) else -1
        consistent = done <= start <= content and self.text.endswith(after) and after.startswith(closing)
        return (start, content + len(closing)) if consistent else None

    def _closed(self, answer: str) -> int:
        """Length of an answer through its end token, or without trailing white space."""
        return answer.find(self.end) + len(self.end) if self.end and self.end in answer else len(answer.rstrip())

    def _unused_text(self) -> str:
        """Digits that do not occur in the text; no template has a reason to change them."""
        number = 0
        while (digits := str(int(hashlib.sha256(bytes([number])).hexdigest(), 16))[:24]) in self.text:
            number += 1
        return digits

    def _render(self, messages: Sequence[Message], opens: bool = False) -> str | None:
        try:
            return chat_text(self.tokenizer, messages, opens, self.template, self.tools)
        except UserError:  # some templates reject an incomplete conversation
            return None


def answer_ids(tokenizer: Tokenizer, answers: Answers) -> list[list[int]]:
    """Encode a conversation through its last answer, in alternating parts: prompt, answer, prompt, answer, ...

    The whole text is tokenized at once; a token with any character of an answer belongs to the answer, as in transformers.
    """
    if tokenizer.supports_offsets:
        encoded = tokenizer(answers.text, add_special_tokens=False, return_offsets=True)
        ids, offsets = encoded["input_ids"][0].tolist(), encoded["offset_mapping"][0]
        inside = [np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start)) for start, end in answers.spans]
        edges = [edge for tokens in inside if len(tokens) for edge in (int(tokens[0]), int(tokens[-1]) + 1)]
        edges = np.maximum.accumulate([0, *edges]).tolist()  # two answers that share a token
        parts = [ids[start:end] for start, end in itertools.pairwise(edges)]
    else:
        edges = [0, *itertools.chain.from_iterable(answers.spans)]
        texts = [answers.text[start:end] for start, end in itertools.pairwise(edges)]
        parts = tokenizer.encode_batch(texts[:1]) + tokenizer.encode_after(texts[1:])
    for index in range(len(parts) - 1, 0, -2):  # an answer without tokens is dropped: its neighbors are joined
        if not parts[index]:
            parts[index - 1 : index + 2] = [list(itertools.chain(*parts[index - 1 : index + 2]))]
    return parts[: len(parts) // 2 * 2]

"""Answers in OpenAI's format, whole or in pieces."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from lm_research.decoding.streaming import continuation
from lm_research.serving.batcher import Event
from lm_research.tokenizers.base import Tokenizer

_LONGEST = 1000  # characters of a message: what clients sent is not sent back


class Response:
    """The head that all pieces of an answer share, and the shape of its choices."""

    def __init__(self, model: str, tokenizer: Tokenizer, chat: bool, best: int) -> None:
        """`best` alternatives a token; -1 without log-probabilities."""
        self.tokenizer, self.chat, self.best = tokenizer, chat, best
        self._inside, self._texts = tokenizer.encode("a"), dict[int, str]()
        prefix = "chatcmpl" if chat else "cmpl"
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[tuple[str, list[Event]]], usage: dict[str, int]) -> dict[str, Any]:
        """An answer of (text, events) of each choice."""
        kind = "chat.completion" if self.chat else "text_completion"
        rows = []
        for number, (text, events) in enumerate(choices):
            message = {"role": "assistant", "content": text, "refusal": None}
            said = {"message": message} if self.chat else {"text": text}
            finish = events[-1].finish
            rows.append({"index": number, **said, "logprobs": self._logprobs(events), "finish_reason": finish})
        return {**self.head, "object": kind, "choices": rows, "usage": usage}

    def piece(self, number: int, event: Event, first: bool) -> dict[str, Any]:
        """What one event adds to a choice."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        delta = ({"role": "assistant"} if first else {}) | {"content": event.text}
        said = {"delta": delta} if self.chat else {"text": event.text}
        choice = {"index": number, **said, "logprobs": self._logprobs([event]), "finish_reason": event.finish or None}
        return {**self.head, "object": kind, "choices": [choice]}

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """The piece with numbers of tokens."""
        return {**self.piece(0, Event(), False), "choices": [], "usage": usage}

    def _logprobs(self, events: list[Event]) -> dict[str, Any] | None:
        if self.best < 0:
            return None
        said = [(event.token, event) for event in events if event.token is not None]
        if self.chat:

            def entry(token: int, value: float | None) -> dict[str, Any]:
                return {
                    "token": self._text(token),
                    "logprob": value,
                    "bytes": list(self._text(token).encode()),
                }

            rows = [
                entry(token, event.logprob) | {"top_logprobs": [entry(*one) for one in event.best[: self.best]]}
                for token, event in said
            ]
            return {"content": rows, "refusal": None}
        return {
            "tokens": [self._text(token) for token, _ in said],
            "token_logprobs": [event.logprob for _, event in said],
            "top_logprobs": [
                None if event.logprob is None else self._likeliest([*event.best[: self.best], (token, event.logprob)])
                for token, event in said
            ],
            "text_offset": [event.offset for _, event in said],
        }

    def _likeliest(self, tokens: list[tuple[int, float]]) -> dict[str, float]:
        """By text; of tokens that look the same, such as parts of characters, the likeliest."""
        found: dict[str, float] = {}
        for token, value in tokens:
            found.setdefault(self._text(token), value)
        return found

    def _text(self, token: int) -> str:
        """As inside of a text, so that a space before a word counts."""
        if token not in self._texts:
            self._texts[token] = continuation(self.tokenizer, self._inside, [token])
        return self._texts[token]


def problem(status: int, message: str, fields: Collection[str] = ()) -> dict[str, Any]:
    """What an answer of this HTTP status says under "error"; its `param` is the first of the request's fields that the message names."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."
    missing = re.match(r"The field '(\w+)' is missing", message)
    named = missing[1] if missing else next((word for word in re.findall(r"\w+", message) if word in fields), None)
    return {"message": message, "type": kind, "param": named, "code": str(status)}


def usage(prompt: int, said: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}

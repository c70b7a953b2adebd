"""Responses in OpenAI's format, complete or in chunks."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from lm_research.decoding.streaming import continuation
from lm_research.serving.batcher import Event
from lm_research.tokenizers.base import Tokenizer

_MAX_MESSAGE = 1000  # characters, so that a client's long input is not sent back


class Response:
    """Formats the response to one request.

    Args:
      model: name of the model.
      tokenizer: tokenizer of the model.
      chat: whether it is a chat completion.
      top_logprobs: number of alternatives per token; -1 without log-probabilities.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, chat: bool, top_logprobs: int) -> None:
        self.tokenizer, self.chat, self.top_logprobs = tokenizer, chat, top_logprobs
        self._prefix_ids, self._texts = tokenizer.encode("a"), dict[int, str]()
        prefix = "chatcmpl" if chat else "cmpl"
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[tuple[str, list[Event]]], usage: dict[str, int]) -> dict[str, Any]:
        """Return a complete response, given (text, events) of each choice."""
        kind = "chat.completion" if self.chat else "text_completion"
        formatted = []
        for number, (text, events) in enumerate(choices):
            message = {"role": "assistant", "content": text, "refusal": None}
            content = {"message": message} if self.chat else {"text": text}
            finish = events[-1].finish
            formatted.append({"index": number, **content, "logprobs": self._logprobs(events), "finish_reason": finish})
        return {**self.head, "object": kind, "choices": formatted, "usage": usage}

    def chunk(self, number: int, event: Event, first: bool) -> dict[str, Any]:
        """Return the chunk that one event adds to choice `number`."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        delta = ({"role": "assistant"} if first else {}) | {"content": event.text}
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": event.text}
        content |= {"logprobs": self._logprobs([event]), "finish_reason": event.finish or None}
        return {**self.head, "object": kind, "choices": [{"index": number, **content}]}

    def last_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens."""
        return {**self.chunk(0, Event(), False), "choices": [], "usage": usage}

    def _logprobs(self, events: list[Event]) -> dict[str, Any] | None:
        if self.top_logprobs < 0:
            return None
        tokens = [(event.token, event) for event in events if event.token is not None]
        if self.chat:

            def entry(token: int, value: float | None) -> dict[str, Any]:
                return {
                    "token": self._text(token),
                    "logprob": value,
                    "bytes": list(self._text(token).encode()),
                }

            content = [
                entry(token, event.logprob) | {"top_logprobs": [entry(*pair) for pair in self._top(event)]}
                for token, event in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [self._text(token) for token, _ in tokens],
            "token_logprobs": [event.logprob for _, event in tokens],
            "top_logprobs": [
                None if event.logprob is None else self._by_text([*self._top(event), (token, event.logprob)])
                for token, event in tokens
            ],
            "text_offset": [event.offset for _, event in tokens],
        }

    def _top(self, event: Event) -> list[tuple[int, float]]:
        return event.best[: self.top_logprobs]

    def _by_text(self, tokens: list[tuple[int, float]]) -> dict[str, float]:
        """Map texts of tokens to log-probabilities; the first wins if tokens, such as parts of characters, look the same."""
        logprobs: dict[str, float] = {}
        for token, value in tokens:
            logprobs.setdefault(self._text(token), value)
        return logprobs

    def _text(self, token: int) -> str:
        """Decode a token as in the middle of a text, so that a space before a word is kept."""
        if token not in self._texts:
            self._texts[token] = continuation(self.tokenizer, self._prefix_ids, [token])
        return self._texts[token]


def error_body(status: int, message: str, fields: Collection[str] = ()) -> dict[str, Any]:
    """Return the "error" object of a response.

    Args:
      status: HTTP status.
      message: the message.
      fields: fields of the request; the first that the message mentions becomes `param`.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]} ..."
    missing = re.match(r"The field '(\w+)' is missing", message)
    param = missing[1] if missing else next((word for word in re.findall(r"\w+", message) if word in fields), None)
    return {"message": message, "type": kind, "param": param, "code": str(status)}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return the "usage" object of a response, given numbers of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

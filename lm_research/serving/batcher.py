"""The thread that owns the model: it admits requests to slots, generates tokens and delivers them until each text ends."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.decoding.generation_config import GenerationConfig, as_list
from lm_research.decoding.generation_request import encode, engine_of, resolve_options
from lm_research.decoding.generation_settings import LengthLimits, make_rules
from lm_research.decoding.prompts import row_digests
from lm_research.decoding.streaming import TextStream
from lm_research.errors import UserError
from lm_research.serving.slots import NEUTRAL, PENALTIES, Slots
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.special_tokens import text_ids

LOG = logging.getLogger("lm_research")
SAMPLE_CHARACTERS = 16  # per available token; of a longer text, only this prefix is tokenized first
EXCESS_FACTOR = 2  # a prefix with this many times the available tokens is refused without tokenizing the rest


class Conversation(str):
    """A prompt that contains all its special tokens."""


class Busy(Exception):
    """The queue is full."""


@dataclasses.dataclass
class Event:
    """What a step adds to a text.

    Attributes:
      text: new characters.
      offset: number of characters before them.
      token: the generated token, if any.
      logprob: its log-probability [nats], if requested.
      best: (token, log-probability) of the most likely tokens, if requested.
      finish: "" except in the last event: "stop", "length", "timeout", "closing", "error" or "refused" (with the reason in
        `text`).
    """

    text: str = ""
    offset: int = 0
    token: int | None = None
    logprob: float | None = None
    best: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    finish: str = ""


class RequestStream:
    """One text of a request while it is generated.

    Attributes:
      options: options of generation.
      tokens: the prompt of the decoder.
      source: the input of the encoder, if any.
      number: index of the text among those of its prompt.
      logprobs: whether log-probabilities are requested.
      deadline: when its time is over [s], as of time.monotonic.
      num_generated: number of new tokens so far.
      max_new_tokens: maximum of that.
      before: tokens that precede the text when it is decoded, see streaming.continuation.
      bias: values added to the logits of tokens.
      total: sum of the log-probabilities [nats] of new tokens, if requested.
      ended: whether the last event is delivered.
      canceled: set when the client no longer waits; the slot is freed before the next step.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: list[int],
        source: list[int] | None,
        options: GenerationConfig,
        number: int,
        stops: Sequence[str],
        logprobs: bool,
        deadline: float,
        deliver: Callable[[Event], None],
        bias: Mapping[int, float] = {},
        before: Sequence[int] = (),
    ) -> None:
        self.tokens, self.source, self.options, self.number, self.logprobs = tokens, source, options, number, logprobs
        self.deadline, self._deliver, self.num_generated, self.canceled, self.ended = deadline, deliver, 0, False, False
        self._stream, self._stops, self._text, self._given = TextStream(tokenizer, before), list(stops), "", 0
        self.total, self.bias, self.before = 0.0, bias, before
        assert options.max_new_tokens is not None and isinstance(options.seed, int), "a request sets both"
        self.max_new_tokens, self._seed = options.max_new_tokens, options.seed

    @property
    def expired(self) -> bool:
        """Whether the client no longer waits or the deadline is over."""
        return self.canceled or time.monotonic() > self.deadline

    def deliver(self, event: Event) -> None:
        """Pass an event to the request's handler."""
        self.ended = bool(event.finish)
        self._deliver(event)

    def control(self) -> dict[str, Any]:
        """Return the settings of its row, see Slots.join."""
        options, width = self.options, len(self.tokens)
        ((digest, _),) = row_digests([(*self.tokens, -1, *(self.source or ()))])
        min_new_tokens = options.min_new_tokens
        if min_new_tokens is None:
            min_new_tokens = max(0, (options.min_length or 0) - width)
        return {name: getattr(options, name) or 0 for name in (*NEUTRAL, *PENALTIES)} | {
            "temperature": options.temperature if options.do_sample else 0.0,
            "bias": self.bias,
            "min_new_tokens": min_new_tokens,
            "max_new_tokens": self.max_new_tokens,
            "seed": self._seed % 2**32,
            "digest": digest,
            "number": self.number,
        }

    def push(self, event: Event) -> bool:
        """Add a token, deliver the text that is final, and return whether the text has ended."""
        assert event.token is not None
        self.num_generated += 1
        self.total += event.logprob or 0.0
        event.offset = len(self._text)
        self._text += self._stream.push(event.token)
        ended = event.token in self.options.ends
        event.finish = "stop" if ended else "length" if self.num_generated >= self.max_new_tokens else ""
        if event.finish:
            self._text += self._stream.end()
        cuts = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if cuts:
            self._text, event.finish = self._text[: min(cuts)], "stop"
        held = 0 if event.finish else max((_overlap(self._text, stop) for stop in self._stops), default=0)
        event.text = self._text[self._given : len(self._text) - held]
        self._given += len(event.text)
        self.deliver(event)
        return bool(event.finish)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)


class Batcher:
    """Runs requests in the slots of a model, with continuous batching.

    Attributes:
      failed: whether the thread has ended with an exception.
    """

    def __init__(self, lm: Any, slots: int, length: int, max_queue: int, max_seconds: float, max_tokens: int) -> None:
        """Allocate the slots and start the thread.

        Args:
          lm: a model that generates text.
          slots: maximum number of texts generated at a time.
          length: maximum number of tokens of a prompt and its text; limited to the model's positions.
          max_queue: maximum number of texts that wait.
          max_seconds: maximum time of a text, including the time in the queue.
          max_tokens: maximum number of new tokens that a request may specify.

        Raises:
          UserError: the model cannot generate text, has no tokenizer, or the slots do not fit into memory.
        """
        engine, arch = engine_of(lm), lm.definition.arch
        if lm.tokenizer is None:
            raise UserError(
                "The model's directory has no tokenizer, so it cannot be served. Put the tokenizer's files there."
            )
        if arch.positions == "learned":
            length = min(length, arch.max_length)
        if arch.steady_length:  # beyond it, the rotations of one text would depend on the others
            length = min(length, arch.steady_length)
        self.lm, self.max_queue, self.max_seconds, self.max_tokens = lm, max_queue, max_seconds, max_tokens
        options = self.options({})
        known = lm.tokenizer.size
        lengths = LengthLimits(options, 1, 1, length)
        rules = make_rules(options, lengths, 1 if arch.encoder else 2, known if known < arch.vocab_size else 0)
        for name in (*PENALTIES, "min_new_tokens"):
            rules.pop(name, None)  # each row has its own
        rules["ends_E"] = np.asarray(options.ends or [-1], np.int32)
        self.slots = Slots(engine, slots, length, rules)
        self._rows: dict[int, RequestStream] = {}
        self._queue: collections.deque[RequestStream] = collections.deque()
        self._wake, self._closed, self.failed = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Number of texts in slots."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Number of texts in the queue."""
        return len(self._queue)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request's arguments of `generate`, with OpenAI's defaults where they differ from `generate`'s."""
        defaults = {"num_beams": 1, "num_return_sequences": 1, "max_new_tokens": 1, "do_sample": False}
        defaults["top_k"] = self.lm.generation_config.get("top_k", 0)  # not transformers' 50
        return defaults | dict(given)

    def options(self, given: Mapping[str, Any]) -> GenerationConfig:
        """Return a request's options over the model's defaults; raise a UserError for invalid values."""
        return resolve_options(self.lm, self.arguments(given), texts=True)

    def prompt(self, text: str | list[int], options: GenerationConfig) -> tuple[list[int], list[int] | None]:
        """Return (decoder's tokens, encoder's tokens) of a prompt; raise a UserError if the model cannot read it."""
        arch = self.lm.definition.arch
        ids = self._tokenize(text, options) if isinstance(text, str) else text
        start = next((token for token in (options.bos_token_id, *options.ends) if token is not None), None)
        ids = ids or ([] if start is None else [start])
        size = (arch.encoder or arch).vocab_size
        if not ids or min(ids) < 0 or max(ids) >= size:
            raise UserError(f"A prompt needs at least one token, and ids from 0 to {size - 1}.")
        source = None
        if arch.encoder is not None:
            if len(ids) > self.slots.max_source_length:
                raise UserError(
                    f"The text has {len(ids)} tokens; this server accepts at most {self.slots.max_source_length}."
                )
            starts = as_list(options.decoder_start_token_id) or as_list(options.bos_token_id)
            if not starts:
                raise UserError(
                    "The model cannot start to generate, because its files have no decoder_start_token_id. Set it in "
                    "generation_config.json."
                )
            ids, source = starts[:1], ids
        return ids, source

    def _tokenize(self, text: str, options: GenerationConfig) -> list[int]:
        """Tokenize a text; refuse one that is far too long after tokenizing its beginning only."""
        arch = self.lm.definition.arch

        def tokenize(part: str) -> list[int]:
            if isinstance(text, Conversation):
                return text_ids(self.lm.tokenizer, part)
            return encode(self.lm.tokenizer, [part], arch.encoder is not None, options.src_lang)[0]

        limit = self.slots.max_source_length or self.slots.length
        sample = SAMPLE_CHARACTERS * limit
        if len(text) > sample and (count := len(tokenize(text[:sample]))) > EXCESS_FACTOR * limit:
            raise UserError(
                f"The prompt has {len(text)} characters, of which the first {sample} are {count} tokens; this server accepts at most "
                f"{limit}."
            )
        return tokenize(text)

    def num_new_tokens(self, tokens: Sequence[int], requested: int, exact: bool) -> int:
        """Return the number of new tokens for a prompt.

        Args:
          tokens: the prompt.
          requested: the requested or default number.
          exact: whether the request specifies it; a default is lowered to what fits.

        Raises:
          UserError: it does not fit.
        """
        available = self.slots.length - len(tokens)
        count = requested if exact else max(1, min(requested, self.max_tokens, available))
        if count > self.max_tokens:
            raise UserError(f"max_tokens is {count}; this server generates at most {self.max_tokens}.")
        if count > available:
            raise UserError(
                f"The prompt has {len(tokens)} tokens and max_tokens is {count}; their sum must be at most {self.slots.length}."
            )
        return count

    def submit(self, streams: Sequence[RequestStream]) -> None:
        """Queue texts, all or none; raise Busy if the queue is full."""
        with self._wake:
            self._purge_queue()
            if self.failed or self._closed or len(self._queue) + len(streams) > self.max_queue + self._free():
                raise Busy
            self._queue.extend(streams)
            self._wake.notify()

    def _free(self) -> int:
        return self.slots.count - len(self._rows)

    def cancel(self, streams: Sequence[RequestStream]) -> None:
        """Stop texts whose client no longer waits."""
        with self._wake:
            for stream in streams:
                stream.canceled = True
            self._wake.notify()

    def abandon(self) -> list[RequestStream]:
        """End all texts because the server stops, and return them; the current step may still finish."""
        with self._wake:
            self._closed, left = True, [*self._rows.values(), *self._queue]
            self._queue.clear()
            self._wake.notify()
        for stream in left:
            stream.canceled = True
            stream.deliver(Event(finish="closing"))
        return left

    def close(self, seconds: float | None = None) -> bool:
        """End the thread after the current step, and return whether it ended within `seconds`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:  # bindings of other languages raise such exceptions
            LOG.exception("the server's model failed")
            self.failed = True
        finally:
            with self._wake:
                self._closed, left = True, [*self._rows.values(), *self._queue]
                self._rows.clear()
                self._queue.clear()
            for stream in left:
                stream.deliver(Event(finish="error"))

    def _turn(self) -> bool:
        """Admit and remove texts, then run one step; return False when the batcher is closed."""
        with self._wake:
            while not self._queue and not self._rows and not self._closed:
                self._wake.wait()
            if self._closed:
                return False
            self._remove_expired()
            rows = [row for row in range(self.slots.count) if row not in self._rows]
            joining = [(row, self._queue.popleft()) for row in rows[: len(self._queue)]]
            self._rows.update(joining)
        for row, stream in joining:
            self.slots.join(row, stream.tokens, stream.source, stream.logprobs, **stream.control())
        if self._rows:
            self._step()
        return True

    def _remove_expired(self) -> None:
        """Free the rows of expired texts; called with the lock."""
        leaving = [row for row, stream in self._rows.items() if stream.expired]
        for row in leaving:
            stream = self._rows.pop(row)
            if not stream.canceled:
                stream.deliver(Event(finish="timeout"))
        self.slots.free(leaving)
        self._purge_queue()

    def _purge_queue(self) -> None:
        """Remove expired texts from the queue; called with the lock."""
        for stream in self._queue:
            if stream.expired and not stream.canceled:
                stream.deliver(Event(finish="timeout"))
        self._queue = collections.deque(stream for stream in self._queue if not stream.expired)

    def _step(self) -> None:
        found = self.slots.step(list(self._rows))
        ended = []
        for row, stream in self._rows.items():
            event = Event(token=int(found["token"][row]))
            if stream.logprobs:
                event.logprob = float(found["logprob"][row])
                pairs = zip(found["best"][row].tolist(), found["best_logprobs"][row].tolist(), strict=True)
                event.best = [(token, value) for token, value in pairs if np.isfinite(value)]
            if self._push(stream, event):
                ended.append(row)
        with self._wake:
            for row in ended:
                del self._rows[row]
            self.slots.free(ended)

    def _push(self, stream: RequestStream, event: Event) -> bool:
        """Add a token to a text, and return whether the text has ended; if its tokenizer fails, only this text ends."""
        try:
            return stream.push(event)
        except Exception:
            LOG.exception("a text could not be decoded from its tokens")
            stream.deliver(Event(finish="error"))
            return True


def draw_seed() -> int:
    """Return a random 32-bit seed."""
    return int.from_bytes(os.urandom(4), "little")

"""The thread that owns the model: it lets requests join, says tokens, and hands them out until each text ends."""

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

from lm_research.decoding.generation_config import GenerationConfig, LengthLimits, make_rules
from lm_research.decoding.generation_request import encode, engine_of, resolve_options
from lm_research.decoding.prompts import row_digests
from lm_research.decoding.streaming import TextStream
from lm_research.errors import UserError
from lm_research.serving.slots import NEUTRAL, PENALTIES, Slots
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.special_tokens import text_ids

LOG = logging.getLogger("lm_research")
SAMPLE = 16  # characters for each token that there is room for, which are read first of a longer text
SURE = 2  # times as many tokens as there is room for: what comes behind them can't make them fit


class Conversation(str):
    """A prompt that has all its special tokens."""


class Busy(Exception):
    """The queue is full."""


@dataclasses.dataclass
class Event:
    """What a step added to a text, which had `offset` characters before.

    `finish` is "stop", "length", "timeout", "closing", "error" or "refused" (`text` says why) in the last one.
    """

    text: str = ""
    offset: int = 0
    token: int | None = None
    logprob: float | None = None
    best: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    finish: str = ""


class RequestStream:
    """The text of one request, on its way.

    Attributes:
      options: how it is to be said.
      tokens, source: the prompt, and what an encoder reads.
      said: new tokens; most: how many there may be.
      before: tokens that its text is read behind, see streaming.continuation.
      bias: of tokens, added to their scores.
      total: sum of their log-probabilities [nats], where those are wanted.
      ended: its last event is delivered.
      canceled: set when nobody waits any more; the row is free before the next step.
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
        self.deadline, self._deliver, self.said, self.canceled, self.ended = deadline, deliver, 0, False, False
        self._stream, self._stops, self._text, self._given = TextStream(tokenizer, before), list(stops), "", 0
        self.total, self.bias, self.before = 0.0, bias, before
        assert options.max_new_tokens is not None and isinstance(options.seed, int), "a request settles both"
        self.most, self._seed = options.max_new_tokens, options.seed

    @property
    def dead(self) -> bool:
        """Whether nobody waits any more, or only for being told that it is too late."""
        return self.canceled or time.monotonic() > self.deadline

    def deliver(self, event: Event) -> None:
        self.ended = bool(event.finish)
        self._deliver(event)

    def control(self) -> dict[str, Any]:
        """What its row is told, see Slots.join."""
        options, width = self.options, len(self.tokens)
        ((digest, _),) = row_digests([(*self.tokens, -1, *(self.source or ()))])
        least = options.min_new_tokens
        least = max(0, (options.min_length or 0) - width) if least is None else least
        return {name: getattr(options, name) or 0 for name in (*NEUTRAL, *PENALTIES)} | {
            "temperature": options.temperature if options.do_sample else 0.0,
            "bias": self.bias,
            "least": least,
            "most": self.most,
            "seed": self._seed % 2**32,
            "digest": digest,
            "number": self.number,
        }

    def push(self, event: Event) -> bool:
        """Takes a token and hands out what it settles; whether the text is at its end."""
        assert event.token is not None
        self.said += 1
        self.total += event.logprob or 0.0
        event.offset = len(self._text)
        self._text += self._stream.push(event.token)
        ended = event.token in self.options.ends
        event.finish = "stop" if ended else "length" if self.said >= self.most else ""
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
    """Length of the longest end of a text that a stop string may begin with."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)


class Batcher:
    """Requests of a model, in its slots.

    Attributes:
      active: texts in slots; waiting: texts before them.
      failed: the thread has ended by a bug.
    """

    def __init__(self, lm: Any, slots: int, length: int, max_queue: int, max_seconds: float, max_tokens: int) -> None:
        """Prepare the slots.

        Args:
          lm: a model that writes.
          slots: texts at a time.
          length: tokens of a prompt and its text; not above the model's positions.
          max_queue: texts that wait.
          max_seconds: a text may take, waiting included.
          max_tokens: a request may ask for.

        Raises:
          UserError: the model can't write, or has no tokenizer.
        """
        engine, arch = engine_of(lm), lm.definition.arch
        if lm.tokenizer is None:
            raise UserError("The model's directory has no tokenizer, so it can't be served. Put its files there.")
        if arch.positions == "learned":
            length = min(length, arch.max_length)
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
        return len(self._rows)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` for a request: its own, and those whose defaults mean something else in OpenAI's format."""
        plain = {"num_beams": 1, "num_return_sequences": 1, "max_new_tokens": 1, "do_sample": False}
        plain["top_k"] = self.lm.generation_config.get("top_k", 0)  # not transformers' 50
        return plain | dict(given)

    def options(self, given: Mapping[str, Any]) -> GenerationConfig:
        """Options of a request over the model's own; raises a UserError for values that can't be."""
        return resolve_options(self.lm, self.arguments(given), texts=True)

    def prompt(self, text: str | list[int], options: GenerationConfig) -> tuple[list[int], list[int] | None]:
        """(tokens, source) of a prompt; raises a UserError if the model can't read it."""
        arch = self.lm.definition.arch
        ids = self._read(text, options) if isinstance(text, str) else text
        begin = next((one for one in (options.bos_token_id, *options.ends) if one is not None), None)
        ids = ids or ([] if begin is None else [begin])
        size = (arch.encoder or arch).vocab_size
        if not ids or min(ids) < 0 or max(ids) >= size:
            raise UserError(f"A prompt needs at least one token, and ids from 0 to {size - 1}.")
        source = None
        if arch.encoder is not None:
            if len(ids) > self.slots.places:
                raise UserError(f"The text has {len(ids)} tokens; this server reads at most {self.slots.places}.")
            start = options.decoder_start_token_id
            start = options.bos_token_id if start is None else start
            if start is None:
                raise UserError("The model's files name no decoder_start_token_id, so it can't begin to write.")
            ids, source = [start], ids
        return ids, source

    def _read(self, text: str, options: GenerationConfig) -> list[int]:
        """Token ids of a text; of one that is far too long only its beginning is looked at."""
        arch = self.lm.definition.arch

        def reads(part: str) -> list[int]:
            if isinstance(text, Conversation):
                return text_ids(self.lm.tokenizer, part)
            return encode(self.lm.tokenizer, [part], arch.encoder is not None, options.src_lang)[0]

        room = self.slots.places or self.slots.length
        if len(text) > SAMPLE * room and (begun := len(reads(text[: SAMPLE * room]))) > SURE * room:
            raise UserError(
                f"The prompt has {len(text)} characters, of which the first {SAMPLE * room} alone are {begun} tokens; this server "
                f"reads at most {room}."
            )
        return reads(text)

    def most(self, tokens: Sequence[int], wanted: int, sized: bool) -> int:
        """New tokens for a prompt: those wanted, or, unless the request is sized, as many of them as there is room for.

        Raises a UserError if it does not fit.
        """
        room = self.slots.length - len(tokens)
        most = wanted if sized else max(1, min(wanted, self.max_tokens, room))
        if most > self.max_tokens:
            raise UserError(f"max_tokens is {most}; this server gives at most {self.max_tokens}.")
        if most > room:
            raise UserError(
                f"The prompt has {len(tokens)} tokens and max_tokens is {most}; together they may be {self.slots.length}."
            )
        return most

    def submit(self, writers: Sequence[RequestStream]) -> None:
        """Lets texts wait for slots, all or none; raises Busy."""
        with self._wake:
            self._forget()
            if self.failed or self._closed or len(self._queue) + len(writers) > self.max_queue + self._free():
                raise Busy
            self._queue.extend(writers)
            self._wake.notify()

    def _free(self) -> int:
        return self.slots.count - len(self._rows)

    def cancel(self, writers: Sequence[RequestStream]) -> None:
        """Gives up texts that nobody waits for."""
        with self._wake:
            for writer in writers:
                writer.canceled = True
            self._wake.notify()

    def abandon(self) -> list[RequestStream]:
        """Tells all whose texts are under way that the server ends, and whose they were. The step under way may still go on."""
        with self._wake:
            self._closed, left = True, [*self._rows.values(), *self._queue]
            self._queue.clear()
            self._wake.notify()
        for writer in left:
            writer.canceled = True
            writer.deliver(Event(finish="closing"))
        return left

    def close(self, seconds: float | None = None) -> bool:
        """Ends the thread after the step that it is at; whether that was within some seconds."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:  # libraries of other languages have such of their own
            LOG.exception("the server's model failed")
            self.failed = True
        finally:
            with self._wake:
                self._closed, left = True, [*self._rows.values(), *self._queue]
                self._rows.clear()
                self._queue.clear()
            for writer in left:
                writer.deliver(Event(finish="error"))

    def _turn(self) -> bool:
        """One step, and who joins and leaves before it; False at the end."""
        with self._wake:
            while not self._queue and not self._rows and not self._closed:
                self._wake.wait()
            if self._closed:
                return False
            self._drop()
            rows = [row for row in range(self.slots.count) if row not in self._rows]
            joining = [(row, self._queue.popleft()) for row in rows[: len(self._queue)]]
            self._rows.update(joining)
        for row, writer in joining:
            self.slots.join(row, writer.tokens, writer.source, writer.logprobs, **writer.control())
        if self._rows:
            self._say()
        return True

    def _drop(self) -> None:
        """Frees the rows of those that are gone or late; called with the lock."""
        leaving = [row for row, writer in self._rows.items() if writer.dead]
        for row in leaving:
            writer = self._rows.pop(row)
            if not writer.canceled:
                writer.deliver(Event(finish="timeout"))
        self.slots.free(leaving)
        self._forget()

    def _forget(self) -> None:
        """Takes those that are gone or late out of the queue; called with the lock."""
        for writer in self._queue:
            if writer.dead and not writer.canceled:
                writer.deliver(Event(finish="timeout"))
        self._queue = collections.deque(writer for writer in self._queue if not writer.dead)

    def _say(self) -> None:
        found = self.slots.step(list(self._rows))
        ended = []
        for row, writer in self._rows.items():
            event = Event(token=int(found["token"][row]))
            if writer.logprobs:
                event.logprob = float(found["logprob"][row])
                pairs = zip(found["best"][row].tolist(), found["best_logprobs"][row].tolist(), strict=True)
                event.best = [(token, value) for token, value in pairs if np.isfinite(value)]
            if self._pushed(writer, event):
                ended.append(row)
        with self._wake:
            for row in ended:
                del self._rows[row]
            self.slots.free(ended)

    def _pushed(self, writer: RequestStream, event: Event) -> bool:
        """Whether a text is at its end, as it is where its tokenizer fails, which is no reason for others to end."""
        try:
            return writer.push(event)
        except Exception:
            LOG.exception("a text could not be read from its tokens")
            writer.deliver(Event(finish="error"))
            return True


def draw_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")

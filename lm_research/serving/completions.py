"""Requests for texts: into the slots, and back as one answer or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from lm_research.decoding.generation_request import engine_of
from lm_research.decoding.scoring import score_prompt
from lm_research.decoding.streaming import offsets
from lm_research.errors import UserError
from lm_research.serving.batcher import Batcher, Busy, Event, RequestStream, draw_seed
from lm_research.serving.memory import check_search
from lm_research.serving.metrics import Metrics
from lm_research.serving.responses import Response, problem, usage
from lm_research.serving.schemas import CompletionRequest, about
from lm_research.serving.sequential_worker import SequentialJob, SequentialWorker
from lm_research.serving.slots import BEST

Reading = Callable[[Callable[[], Any]], Awaitable[Any]]
_BROKEN = {
    "timeout": (504, "The time for this request is over."),
    "error": (500, "The server's model failed."),
    "closing": (503, "The server is being stopped. Ask again later."),
}


class CompletionService:
    """Answers orders of texts, in the slots of a batcher or alone."""

    def __init__(
        self, batcher: Batcher, alone: SequentialWorker, metrics: Metrics, name: str, read: Reading, digest: Reading
    ) -> None:
        """`read` runs the model on a text in a thread, `digest` all else that takes time, see app.Server."""
        self.batcher, self.alone, self.metrics, self.name = batcher, alone, metrics, name
        self.read, self.digest = read, digest

    async def answer(self, make: Callable[[], CompletionRequest], chat: bool, deadline: float) -> Any:
        """A JSON object, or a response if it is to be streamed.

        Args:
          make: gives the order.
          chat: it is of messages.
          deadline: when the time for it is over [s], as of time.monotonic.

        Raises:
          UserError: it can't be done as asked.
          HTTPException: no place or no time.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(number: int, event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed: nobody waits then
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        def plan() -> tuple[CompletionRequest, list[RequestStream], dict[str, Any], Response]:
            order = make()
            return (
                order,
                *self._writers(order, deadline, tell),
                Response(self.name, self.batcher.lm.tokenizer, chat, order.best),
            )

        order, writers, arguments, reply = await self.digest(plan)
        echoes = await self._echoes(order, writers)
        try:
            if order.silent:
                for writer in writers:
                    writer.deliver(Event(finish="length"))
            elif order.alone:
                self.alone.submit(SequentialJob(writers, arguments, order.count, order.stops))
            else:
                self.batcher.submit(writers)
        except Busy as busy:
            if self.batcher.failed:
                raise HTTPException(500, _BROKEN["error"][1]) from busy
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"}) from busy
        if order.stream:
            return EventStream(self, writers, self._stream(order, writers, events, reply, deadline))
        return await self._whole(order, writers, events, reply, echoes)

    def _writers(
        self, order: CompletionRequest, deadline: float, tell: Callable[[int, Event], None]
    ) -> tuple[list[RequestStream], dict[str, Any]]:
        """The texts of an order, and the arguments with which `generate` makes them; `tell` hears of each with its number."""
        batcher = self.batcher
        arguments = batcher.arguments({"seed": draw_seed()} | order.arguments)
        judged = order.best >= 0 or order.count > order.kept
        if order.alone:
            drawn = arguments["do_sample"] or arguments["num_beams"] > 1
            arguments |= {"num_return_sequences": order.count if drawn else 1, "top_logprobs": 0}
            if order.best > 0:  # as many for all, which is one program
                arguments["top_logprobs"] = min(BEST, batcher.slots.vocab)
            arguments |= {"output_logprobs": judged, "return_dict_in_generate": True}
            if order.bias:
                arguments["sequence_bias"] = {(token,): value for token, value in order.bias.items()}
        self._check_tokens(order)
        language = "src_lang" if "src_lang" in order.arguments else "tgt_lang"
        with about(language, order.arguments) if language in order.arguments else contextlib.nullcontext():
            options = batcher.options(arguments)
        # A language's tokens, which `generate` would not find out for token ids.
        arguments |= {name: getattr(options, name) for name in ("decoder_start_token_id", "forced_bos_token_id")}
        writers: list[RequestStream] = []
        field = "messages" if order.answers else "prompt"
        for prompt in order.prompts:
            with about(field):
                tokens, source = batcher.prompt(prompt, options)
                most = batcher.most(tokens, arguments["max_new_tokens"], order.sized)
            own = dataclasses.replace(options, max_new_tokens=most)
            before = tokens if source is None and not order.answers else []
            for copy in range(order.count):
                deliver = functools.partial(tell, len(writers))
                writers.append(
                    RequestStream(
                        batcher.lm.tokenizer,
                        tokens,
                        source,
                        own,
                        copy,
                        order.stops,
                        judged,
                        deadline,
                        deliver,
                        order.bias,
                        before,
                    )
                )
        # `generate` writes as much behind each of its prompts.
        most = min(writer.most for writer in writers)
        if order.alone:
            lengths = [len(writer.source or writer.tokens) for writer in writers[:: order.count]]
            texts = len(lengths) * max(order.count, arguments["num_beams"])
            check_search(field, batcher.lm.definition.arch, lengths, texts, most)
        return writers, arguments | {"max_new_tokens": most}

    async def _echoes(self, order: CompletionRequest, writers: list[RequestStream]) -> list[tuple[str, list[Event]]]:
        """The text of each prompt that is to be given back, and its tokens where their log-probabilities are wanted."""
        tokenizer, found = self.batcher.lm.tokenizer, []
        if order.echo and order.best >= 0 and writers[0].source is not None:
            raise UserError("echo with logprobs is of models that go on from their prompt, not of encoder-decoders.")
        for prompt, writer in zip(order.prompts, writers[:: order.count], strict=True):
            text = (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) if order.echo else ""
            events = []
            if order.echo and order.best >= 0:
                judge = functools.partial(_judged, self.batcher.lm, writer.tokens, order.best)
                events = await self.read(judge)
            found.append((text, events))
        return found

    def _check_tokens(self, order: CompletionRequest) -> None:
        """Raises a UserError for ids that the model has not."""
        for name in ("logit_bias", "bad_words_ids", "force_words_ids"):
            words = [order.bias] if name == "logit_bias" else order.arguments.get(name, ())
            for token in (token for word in words for token in word):
                if not 0 <= token < self.batcher.slots.vocab:
                    raise UserError(
                        f"{name}: there is no token {str(token)[:80]}; ids are from 0 to {self.batcher.slots.vocab - 1}."
                    )

    def _usage(self, writers: list[RequestStream], count: int) -> dict[str, int]:
        """Numbers of tokens; a prompt with several texts counts once."""
        read = sum(len(writer.source or writer.tokens) for writer in writers[::count])
        said = sum(writer.said for writer in writers)
        self.metrics.tokens.labels("prompt").inc(read)
        self.metrics.tokens.labels("completion").inc(said)
        return usage(read, said)

    async def _whole(
        self,
        order: CompletionRequest,
        writers: list[RequestStream],
        events: asyncio.Queue[tuple[int, Event]],
        reply: Response,
        echoes: list[tuple[str, list[Event]]],
    ) -> dict[str, Any]:
        found: list[list[Event]] = [[] for _ in writers]
        try:
            while not all(row and row[-1].finish for row in found):
                number, event = await events.get()
                found[number].append(event)
                if event.finish == "refused":
                    raise UserError(event.text)
                if event.finish in _BROKEN:
                    raise HTTPException(*_BROKEN[event.finish])
        finally:
            self.batcher.cancel(writers)
        usage = self._usage(writers, order.count)
        return await self.digest(lambda: reply.whole(_choices(order, writers, found, echoes), usage))

    async def _stream(
        self,
        order: CompletionRequest,
        writers: list[RequestStream],
        events: asyncio.Queue[tuple[int, Event]],
        reply: Response,
        deadline: float,
    ) -> AsyncGenerator[str, None]:
        """Server-sent events. At the deadline comes the last, even if a program is being compiled then."""
        open_rows, begun = set(range(len(writers))), set()
        while open_rows:
            try:
                number, event = await asyncio.wait_for(events.get(), deadline - time.monotonic())
            except TimeoutError:
                number, event = 0, Event(finish="timeout")
            if event.finish == "refused" or event.finish in _BROKEN:
                yield _sse({"error": problem(*_BROKEN.get(event.finish, (400, event.text)))})
                return
            if event.finish:
                open_rows.discard(number)
            first = number not in begun
            begun.add(number)
            if first and order.echo:
                given = order.prompts[number // order.count]
                event.text = (given if isinstance(given, str) else reply.tokenizer.decode(given)) + event.text
            if event.text or event.finish or order.best >= 0:
                yield _sse(reply.piece(number, event, first))
            elif first:
                begun.discard(number)
        numbers = self._usage(writers, order.count)
        if order.usage:
            yield _sse(reply.last(numbers))
        yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events. Slots are free again when the client goes, even before the first event."""

    def __init__(
        self, writing: CompletionService, writers: list[RequestStream], events: AsyncGenerator[str, None]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._writing, self._writers, self._events = writing, writers, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not all(writer.ended for writer in self._writers):
                self._writing.metrics.disconnects.inc()
            self._writing.batcher.cancel(self._writers)
            await self._events.aclose()


def _choices(
    order: CompletionRequest,
    writers: list[RequestStream],
    found: list[list[Event]],
    echoes: list[tuple[str, list[Event]]],
) -> list[tuple[str, list[Event]]]:
    """Texts and events of an order's answer."""
    choices = []
    for first in range(0, len(writers), order.count):
        given, before = echoes[first // order.count]
        for number in _likeliest(writers, range(first, first + order.count), order.kept):
            own = [dataclasses.replace(event, offset=event.offset + len(given)) for event in found[number]]
            choices.append((given + "".join(event.text for event in own), [*before, *own]))
    return choices


def _judged(lm: Any, tokens: list[int], best: int) -> list[Event]:
    """The tokens of a prompt with their log-probabilities; the first has none, because nothing stands before it."""
    places = offsets(lm.tokenizer, tokens)
    events = [Event(token=token, offset=place) for token, place in zip(tokens, places, strict=True)]
    if len(tokens) > 1:
        for event, log, ids_T, logs_T in zip(events[1:], *score_prompt(engine_of(lm), tokens, best), strict=True):
            event.logprob, event.best = float(log), list(zip(ids_T.tolist(), logs_T.tolist(), strict=True))
    return events


def _likeliest(writers: list[RequestStream], numbers: range, kept: int) -> list[int]:
    """The `kept` texts with the highest log-probability a token, best first; all as they are where none is left out."""
    if kept == len(numbers):
        return list(numbers)
    return sorted(numbers, key=lambda number: -writers[number].total / max(1, writers[number].said))[:kept]


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

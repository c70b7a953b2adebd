"""Requests for texts: into the slots, and back as one answer or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from lm_research.serving.batcher import Batcher, Busy, Event, Writer, draw_seed
from lm_research.serving.messages import Order
from lm_research.serving.metrics import Metrics
from lm_research.serving.replies import Reply, usage

_BROKEN = {"timeout": (504, "The time for this request is over."), "error": (500, "The server's model failed.")}


class Writing:
    """Answers orders of texts."""

    def __init__(self, batcher: Batcher, metrics: Metrics, name: str) -> None:
        self.batcher, self.metrics, self.name = batcher, metrics, name

    async def answer(self, request: Request, order: Order, chat: bool) -> Any:
        """A JSON object, or a response if it is to be streamed.

        Raises:
          UserError: it can't be done as asked.
          HTTPException: no place, no time, or nobody who waits.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        writers = self._writers(order, events)
        try:
            self.batcher.submit(writers)
        except Busy as busy:
            if self.batcher.failed:
                raise HTTPException(500, _BROKEN["error"][1]) from busy
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"}) from busy
        reply = Reply(self.name, self.batcher.lm.tokenizer, chat, order.best)
        if order.stream:
            return Stream(self, writers, self._stream(order, writers, events, reply))
        return await self._whole(request, order, writers, events, reply)

    def _writers(self, order: Order, events: asyncio.Queue) -> list[Writer]:
        batcher, loop = self.batcher, asyncio.get_running_loop()
        seed = order.arguments.get("seed")
        options = batcher.options(order.arguments | {"seed": draw_seed() if seed is None else seed})
        deadline = time.monotonic() + batcher.max_seconds
        writers: list[Writer] = []
        for prompt in order.prompts:
            tokens, source = batcher.prompt(prompt, options)
            for copy in range(order.count):

                def deliver(event: Event, number: int = len(writers)) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop may be closed: nobody waits then
                        loop.call_soon_threadsafe(events.put_nowait, (number, event))

                writers.append(
                    Writer(
                        batcher.lm.tokenizer, tokens, source, options, copy, order.stops, order.best >= 0, deadline, deliver
                    )
                )  # fmt: skip
        return writers

    def _usage(self, writers: list[Writer], count: int) -> dict[str, int]:
        """Numbers of tokens; a prompt with several texts counts once."""
        read = sum(len(writer.source or writer.tokens) for writer in writers[::count])
        said = sum(writer.said for writer in writers)
        self.metrics.tokens.labels("prompt").inc(read)
        self.metrics.tokens.labels("completion").inc(said)
        return usage(read, said)

    async def _whole(
        self, request: Request, order: Order, writers: list[Writer], events: asyncio.Queue, reply: Reply
    ) -> dict[str, Any]:
        found: list[list[Event]] = [[] for _ in writers]
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            while not all(row and row[-1].finish for row in found):
                taking = asyncio.ensure_future(events.get())
                await asyncio.wait({taking, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    self.metrics.disconnects.inc()
                    raise HTTPException(499, "The client is gone.")
                number, event = taking.result()
                found[number].append(event)
                if event.finish in _BROKEN:
                    raise HTTPException(*_BROKEN[event.finish])
        finally:
            gone.cancel()
            self.batcher.cancel(writers)
        choices = []
        for number, row in enumerate(found):
            given = order.prompts[number // order.count] if order.echo else ""
            given = given if isinstance(given, str) else self.batcher.lm.tokenizer.decode(given)
            choices.append((given + "".join(event.text for event in row), row))
        return reply.whole(choices, self._usage(writers, order.count))

    async def _stream(
        self, order: Order, writers: list[Writer], events: asyncio.Queue, reply: Reply
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        open_rows, begun = set(range(len(writers))), set()
        while open_rows:
            number, event = await events.get()
            if event.finish in _BROKEN:
                status, message = _BROKEN[event.finish]
                yield _sse({"error": {"message": message, "type": "server_error", "code": status}})
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


class Stream(StreamingResponse):
    """Server-sent events. Slots are free again when the client goes, even before the first event."""

    def __init__(self, writing: Writing, writers: list[Writer], events: AsyncIterator[str]) -> None:
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


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _disconnected(request: Request) -> None:
    """Returns when the client is gone. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Completion requests: run them in the slots or sequentially, and respond with one object or with server-sent events."""

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
from typing_extensions import override

from lm_research.decoding.generation_request import engine_of
from lm_research.decoding.scoring import score_prompt
from lm_research.decoding.streaming import offsets
from lm_research.errors import UserError
from lm_research.serving.batcher import Batcher, Busy, Event, RequestStream, draw_seed
from lm_research.serving.memory import check_search
from lm_research.serving.metrics import Metrics
from lm_research.serving.responses import Response, error_body, usage
from lm_research.serving.schemas import CompletionRequest, prefix_errors
from lm_research.serving.sequential_worker import SequentialJob, SequentialWorker
from lm_research.serving.slots import MAX_TOP_LOGPROBS

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]
_FAILURES = {
    "timeout": (504, "The request did not finish in time."),
    "error": (500, "The server's model failed."),
    "closing": (503, "The server is stopping. Try again later."),
}


class CompletionService:
    """Responds to completion requests, in the slots of a batcher or with a sequential worker."""

    def __init__(
        self,
        batcher: Batcher,
        sequential: SequentialWorker,
        metrics: Metrics,
        name: str,
        run_model: RunInThread,
        run_in_thread: RunInThread,
    ) -> None:
        """Build a service; for `run_model` and `run_in_thread` see app.Server."""
        self.batcher, self.sequential, self.metrics, self.name = batcher, sequential, metrics, name
        self.run_model, self.run_in_thread = run_model, run_in_thread

    async def answer(self, make: Callable[[], CompletionRequest], chat: bool, deadline: float) -> Any:
        """Return a JSON object, or a response if the request is streamed.

        Args:
          make: returns the parsed request.
          chat: whether it is a chat completion.
          deadline: when its time is over [s], as of time.monotonic.

        Raises:
          UserError: the request is not valid.
          HTTPException: the queue is full or the time is over.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(number: int, event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # a closed loop has no waiting client
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        def prepare() -> tuple[CompletionRequest, list[RequestStream], dict[str, Any], Response]:
            request = make()
            streams, arguments = self._streams(request, deadline, deliver)
            return (
                request,
                streams,
                arguments,
                Response(self.name, self.batcher.lm.tokenizer, chat, request.top_logprobs),
            )

        request, streams, arguments, response = await self.run_in_thread(prepare)
        echoes = await self._echoes(request, streams)
        try:
            if request.echo_only:
                for stream in streams:
                    stream.deliver(Event(finish="length"))
            elif request.sequential:
                self.sequential.submit(SequentialJob(streams, arguments, request.count, request.stops))
            else:
                self.batcher.submit(streams)
        except Busy as busy:
            if self.batcher.failed:
                raise HTTPException(500, _FAILURES["error"][1]) from busy
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"}) from busy
        if request.stream:
            return EventStream(self, streams, self._stream(request, streams, events, response, deadline))
        return await self._whole(request, streams, events, response, echoes)

    def _streams(
        self, request: CompletionRequest, deadline: float, deliver: Callable[[int, Event], None]
    ) -> tuple[list[RequestStream], dict[str, Any]]:
        """Return the texts of a request, and the arguments of `generate`.

        Args:
          request: the request.
          deadline: when its time is over [s].
          deliver: receives the number of a text and each of its events.
        """
        batcher = self.batcher
        arguments = batcher.arguments({"seed": draw_seed()} | request.arguments)
        logprobs = request.top_logprobs >= 0 or request.count > request.num_returned
        if request.sequential:
            differ = arguments["do_sample"] or arguments["num_beams"] > 1
            arguments |= {"num_return_sequences": request.count if differ else 1, "top_logprobs": 0}
            if request.top_logprobs > 0:  # the maximum for all requests, so that they share one program
                arguments["top_logprobs"] = min(MAX_TOP_LOGPROBS, batcher.slots.vocab_size)
            arguments |= {"output_logprobs": logprobs, "return_dict_in_generate": True}
            if request.bias:
                arguments["sequence_bias"] = {(token,): value for token, value in request.bias.items()}
        self._check_tokens(request)
        language = "src_lang" if "src_lang" in request.arguments else "tgt_lang"
        with prefix_errors(language, request.arguments) if language in request.arguments else contextlib.nullcontext():
            options = batcher.options(arguments)
        # The tokens of a language, which `generate` could not infer from token ids.
        arguments |= {name: getattr(options, name) for name in ("decoder_start_token_id", "forced_bos_token_id")}
        streams: list[RequestStream] = []
        field = "messages" if request.is_chat else "prompt"
        for prompt in request.prompts:
            with prefix_errors(field):
                tokens, source = batcher.prompt(prompt, options)
                max_new_tokens = batcher.num_new_tokens(tokens, arguments["max_new_tokens"], request.has_max_tokens)
            prompt_options = dataclasses.replace(options, max_new_tokens=max_new_tokens)
            before = tokens if source is None and not request.is_chat else []
            for copy in range(request.count):
                streams.append(
                    RequestStream(
                        batcher.lm.tokenizer,
                        tokens,
                        source,
                        prompt_options,
                        copy,
                        request.stops,
                        logprobs,
                        deadline,
                        functools.partial(deliver, len(streams)),
                        request.bias,
                        before,
                    )
                )
        # `generate` has one limit for all prompts.
        max_new_tokens = min(stream.max_new_tokens for stream in streams)
        if request.sequential:
            lengths = [len(stream.source or stream.tokens) for stream in streams[:: request.count]]
            texts = len(lengths) * max(request.count, arguments["num_beams"])
            check_search(field, batcher.lm.definition.arch, lengths, texts, max_new_tokens)
        return streams, arguments | {"max_new_tokens": max_new_tokens}

    async def _echoes(self, request: CompletionRequest, streams: list[RequestStream]) -> list[tuple[str, list[Event]]]:
        """Return each prompt's text if it is echoed, and its tokens if their log-probabilities are requested."""
        tokenizer, found = self.batcher.lm.tokenizer, []
        if request.echo and request.top_logprobs >= 0 and streams[0].source is not None:
            raise UserError("echo with logprobs requires a decoder; this model is an encoder-decoder.")
        for prompt, stream in zip(request.prompts, streams[:: request.count], strict=True):
            text = (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) if request.echo else ""
            events = []
            if request.echo and request.top_logprobs >= 0:
                score = functools.partial(_score_prompt, self.batcher.lm, stream.tokens, request.top_logprobs)
                events = await self.run_model(score)
            found.append((text, events))
        return found

    def _check_tokens(self, request: CompletionRequest) -> None:
        """Raise a UserError for token ids outside of the vocabulary."""
        for name in ("logit_bias", "bad_words_ids", "force_words_ids"):
            words = [request.bias] if name == "logit_bias" else request.arguments.get(name, ())
            for token in (token for word in words for token in word):
                if not 0 <= token < self.batcher.slots.vocab_size:
                    raise UserError(
                        f"{name}: there is no token {str(token)[:80]}; ids are from 0 to {self.batcher.slots.vocab_size - 1}."
                    )

    def _usage(self, streams: list[RequestStream], count: int) -> dict[str, int]:
        """Return numbers of tokens; a prompt with several texts counts once."""
        prompt = sum(len(stream.source or stream.tokens) for stream in streams[::count])
        completion = sum(stream.num_generated for stream in streams)
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("completion").inc(completion)
        return usage(prompt, completion)

    async def _whole(
        self,
        request: CompletionRequest,
        streams: list[RequestStream],
        events: asyncio.Queue[tuple[int, Event]],
        response: Response,
        echoes: list[tuple[str, list[Event]]],
    ) -> dict[str, Any]:
        found: list[list[Event]] = [[] for _ in streams]
        try:
            while not all(row and row[-1].finish for row in found):
                number, event = await events.get()
                found[number].append(event)
                if event.finish == "refused":
                    raise UserError(event.text)
                if event.finish in _FAILURES:
                    raise HTTPException(*_FAILURES[event.finish])
        finally:
            self.batcher.cancel(streams)
        usage = self._usage(streams, request.count)
        return await self.run_in_thread(lambda: response.whole(_choices(request, streams, found, echoes), usage))

    async def _stream(
        self,
        request: CompletionRequest,
        streams: list[RequestStream],
        events: asyncio.Queue[tuple[int, Event]],
        response: Response,
        deadline: float,
    ) -> AsyncGenerator[str, None]:
        """Yield server-sent events; the last comes at the deadline at the latest, even while a program is compiled."""
        unfinished, begun = set(range(len(streams))), set()
        while unfinished:
            try:
                number, event = await asyncio.wait_for(events.get(), deadline - time.monotonic())
            except TimeoutError:
                number, event = 0, Event(finish="timeout")
            if event.finish == "refused" or event.finish in _FAILURES:
                yield _sse({"error": error_body(*_FAILURES.get(event.finish, (400, event.text)))})
                return
            if event.finish:
                unfinished.discard(number)
            first = number not in begun
            begun.add(number)
            if first and request.echo:
                prompt = request.prompts[number // request.count]
                event.text = (prompt if isinstance(prompt, str) else response.tokenizer.decode(prompt)) + event.text
            if event.text or event.finish or request.top_logprobs >= 0:
                yield _sse(response.chunk(number, event, first))
            elif first:
                begun.discard(number)
        token_counts = self._usage(streams, request.count)
        if request.include_usage:
            yield _sse(response.last_chunk(token_counts))
        yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Response of server-sent events, which frees the slots when the client disconnects, even before the first event."""

    def __init__(
        self, service: CompletionService, streams: list[RequestStream], events: AsyncGenerator[str, None]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._service, self._streams, self._events = service, streams, events

    @override
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not all(stream.ended for stream in self._streams):
                self._service.metrics.disconnects.inc()
            self._service.batcher.cancel(self._streams)
            await self._events.aclose()


def _choices(
    request: CompletionRequest,
    streams: list[RequestStream],
    found: list[list[Event]],
    echoes: list[tuple[str, list[Event]]],
) -> list[tuple[str, list[Event]]]:
    """Return (text, events) of each choice of the response."""
    choices = []
    for first in range(0, len(streams), request.count):
        prompt, prompt_events = echoes[first // request.count]
        for number in _most_likely(streams, range(first, first + request.count), request.num_returned):
            events = [dataclasses.replace(event, offset=event.offset + len(prompt)) for event in found[number]]
            choices.append((prompt + "".join(event.text for event in events), [*prompt_events, *events]))
    return choices


def _score_prompt(lm: Any, tokens: list[int], best: int) -> list[Event]:
    """Return the tokens of a prompt with their log-probabilities; the first has none, because nothing precedes it."""
    starts = offsets(lm.tokenizer, tokens)
    events = [Event(token=token, offset=start) for token, start in zip(tokens, starts, strict=True)]
    if len(tokens) > 1:
        for event, log, ids_T, logs_T in zip(events[1:], *score_prompt(engine_of(lm), tokens, best), strict=True):
            event.logprob, event.best = float(log), list(zip(ids_T.tolist(), logs_T.tolist(), strict=True))
    return events


def _most_likely(streams: list[RequestStream], numbers: range, num_returned: int) -> list[int]:
    """Return the `kept` texts with the highest mean log-probability, best first; if all are kept, their order is unchanged."""
    if num_returned == len(numbers):
        return list(numbers)
    return sorted(numbers, key=lambda number: -streams[number].total / max(1, streams[number].num_generated))[
        :num_returned
    ]


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

"""The routes: who may ask, how much, and what is answered.

/v1/completions /v1/chat/completions /v1/embeddings /v1/models      OpenAI's format
/v1/predict   {"task", "inputs", "options"}: reading tasks of lm_research.pipeline
/v1/inspect   {"text"}: tokens and attentions [layers][heads][to][from], for the page
/healthz /metrics /    whether it runs; Prometheus; a page to try it by hand
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lm_research.decoding.embed import resolve_prompt
from lm_research.errors import UserError
from lm_research.models.text_embedding import EmbeddingConfig
from lm_research.pipelines import PIPELINES, pipeline
from lm_research.pipelines.generation import TextGeneration, TextToText
from lm_research.serving import bodies, schemas
from lm_research.serving.access import Access, page_policy
from lm_research.serving.batcher import Batcher
from lm_research.serving.completions import CompletionService
from lm_research.serving.lanes import Lane
from lm_research.serving.memory import rows_at_once
from lm_research.serving.metrics import Metrics
from lm_research.serving.responses import problem
from lm_research.serving.sequential_worker import SequentialWorker
from lm_research.tokenizers.chat_template import chat_template

LOG = logging.getLogger("lm_research")
PAGE = pathlib.Path(__file__).with_name("page.html")
_MOST_INPUTS = 256  # texts of one request to embed or predict
_TOGETHER = 32  # texts of one pass of the model, as `embed` has it
_MOST_SEEN = 64  # tokens whose attentions are shown
_DIGESTERS = 2  # threads that read bodies and texts, and write answers
_PATIENCE = 0.5  # seconds that threads are waited for at the end


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      slots, length, max_tokens, max_queue, max_seconds: see Batcher.
      max_body_bytes: of a request; read_seconds: in which it must come.
    """

    slots: int = 32
    length: int = 1024
    max_tokens: int = 512
    max_queue: int = 128
    max_seconds: float = 120.0
    max_body_bytes: int = 1 << 20
    read_seconds: float = 30.0


def make_app(
    lm: Any, name: str, limits: Limits = Limits(), token: str | None = None, hosts: Collection[str] | None = None
) -> Starlette:
    """The application of one model.

    Args:
      lm: the model; one that writes has slots, see Batcher.
      name: what it is called in answers.
      limits: what it takes.
      token: that requests must bear; None lets everyone in who can connect.
      hosts: names that it answers to, beside those of this machine; None does to all, see access.py.
    """
    server = Server(lm, name, limits, token)
    guarded: dict[str, Callable[..., Any]] = {
        "/metrics": server.show_metrics,
        "/v1/models": server.models,
        "/v1/models/{name:path}": server.model,
        "/v1/embeddings": server.embeddings,
        "/v1/predict": server.predict,
        "/v1/inspect": server.inspect,
        "/v1/completions": server.completions,
        "/v1/chat/completions": server.chat,
    }
    asked = (server.show_metrics, server.models, server.model)
    routes = [Route("/", server.page), Route("/healthz", server.health)] + [
        Route(
            path,
            server.guarded(path, handler, reads=handler not in asked),
            methods=["GET" if handler in asked else "POST"],
        )
        for path, handler in guarded.items()
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        server.end()
        await asyncio.get_running_loop().run_in_executor(None, server.close, _PATIENCE)

    names = [Middleware(Access, hosts=hosts)]
    app = Starlette(routes=routes, middleware=names, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    app.state.server = server
    return app


def error(
    status: int, message: str, headers: Mapping[str, str] | None = None, fields: Collection[str] = ()
) -> JSONResponse:
    return JSONResponse({"error": problem(status, message, fields)}, status, headers)


async def _http_error(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    return error(exception.status_code, str(exception.detail), exception.headers)


class Server:
    """Routes of a model. `batcher` and `alone` are None where it can't write; see make_app for arguments."""

    def __init__(self, lm: Any, name: str, limits: Limits, token: str | None) -> None:
        self.lm, self.name, self.limits, self._token = lm, name, limits, token
        self.batcher: Batcher | None = None
        self.alone: SequentialWorker | None = None
        self.writing: CompletionService | None = None
        if lm.head in ("causal_lm", "seq2seq_lm"):
            self.batcher = Batcher(
                lm, limits.slots, limits.length, limits.max_queue, limits.max_seconds, limits.max_tokens
            )
            self.alone = SequentialWorker(lm, limits.max_queue)
        self.tasks = [
            task
            for task, kind in PIPELINES.items()
            if lm.head in kind.heads and not issubclass(kind, TextGeneration | TextToText)
        ]
        self.metrics = Metrics(self.batcher, self.alone)
        if self.batcher and self.alone:
            self.writing = CompletionService(self.batcher, self.alone, self.metrics, name, self.read, self.digest)
        self._since = int(time.time())
        # One thread runs the model on what is only read; some do all else that takes time, for which no other request waits.
        self._reader = Lane("reader", 1, limits.max_queue)
        self._digesters = Lane("digester", _DIGESTERS, limits.max_queue + limits.slots)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._ending = False
        self._pipelines: dict[str, Any] = {}

    def guarded(self, path: str, handler: Callable[..., Any], reads: bool) -> Callable[[Request], Any]:
        """A handler behind the token, whose mistakes become answers, and which is counted under its route's path.

        It is given the request, or what its body says if it `reads` one, and when its time is over. What clients write into an
        address is no label: anyone could make as many as they like, and each is kept.
        """

        async def handle(request: Request) -> Response:
            with self.metrics.request(path) as record:
                response = await self._answer(handler, request, reads)
                record(response.status_code)
                return response

        return handle

    async def _answer(self, handler: Callable[..., Any], request: Request, reads: bool) -> Response:
        deadline, fields = time.monotonic() + self.limits.max_seconds, set[str]()
        if self._token is not None and not self._knows(request.headers.get("authorization", "")):
            return error(401, "Give the server's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
        try:
            if not reads:
                return await handler(request)
            data = await bodies.receive(request, self.limits.max_body_bytes, self.limits.read_seconds)

            async def work() -> Response:
                body = await self.digest(lambda: bodies.parse(data))
                fields.update(body if isinstance(body, dict) else ())
                return await handler(body, deadline)

            return await self._in_time(work(), request, deadline)
        except UserError as mistake:
            return error(400, str(mistake), fields=fields)
        except HTTPException as mistake:
            return error(mistake.status_code, mistake.detail, mistake.headers)
        except ClientDisconnect:
            self.metrics.disconnects.inc()
            return error(499, "The client is gone.")
        except Exception:
            LOG.exception("a request failed")
            return error(500, "The server failed at this request. Its log says where.")

    async def _in_time(self, work: Coroutine[Any, Any, Any], request: Request, deadline: float) -> Response:
        """What some work answers, which is given up when its time is over, its client is gone, or the server ends.

        What it has running in a thread goes on there, and keeps its place.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        self._under_way.add(task)
        try:
            await asyncio.wait({task, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled() or (self._ending and not task.done()):
                raise HTTPException(503, "The server is being stopped. Ask again later.", {"Retry-After": "5"})
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            raise HTTPException(504, f"Not done within {self.limits.max_seconds:g} seconds.")
        finally:
            self._under_way.discard(task)
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})  # it gives back its slots first
            if not task.cancelled():
                task.exception()  # which has been told, or comes too late

    def end(self) -> bool:
        """Answers all that is under way that the server ends; whether there was anything. Called in the event loop."""
        left = len(self._under_way)
        self._ending = True
        for lane in (self.batcher, self.alone):
            left += len(lane.abandon()) if lane else 0
        for task in self._under_way:
            task.cancel()
        return left > 0

    def close(self, seconds: float) -> bool:
        """Ends the threads; whether all did within some seconds. Those that don't are inside of a compiler, most likely."""
        end = time.monotonic() + seconds
        lanes = (self.alone, self.batcher, self._reader, self._digesters)
        return all([lane.close(max(0.0, end - time.monotonic())) for lane in lanes if lane])

    def _knows(self, given: str) -> bool:
        """Whether a header bears the token, sent in UTF-8, as most clients do, or in Latin-1, as browsers do."""
        wanted = f"Bearer {self._token}".encode()
        in_latin_1 = hmac.compare_digest(given.encode(), wanted)
        return hmac.compare_digest(given.encode("latin-1"), wanted) or in_latin_1  # headers are read as Latin-1

    def check_model(self, body: Any) -> None:
        """Raises HTTPException if another model is asked for."""
        asked = body.get("model") if isinstance(body, dict) else None
        if isinstance(asked, str) and asked != self.name:
            raise HTTPException(404, f"There is no model {asked[:80]!r} here, but {self.name!r}.")

    async def read(self, function: Callable[[], Any]) -> Any:
        """Runs the model on texts in a thread, one request at a time; others wait, up to limits."""
        return await self._reader.run(function)

    async def digest(self, function: Callable[[], Any]) -> Any:
        """Does what takes time and not the model, such as reading long texts, in a thread."""
        return await self._digesters.run(function)

    # ----------------------------------------------------------------------------------------------------- routes

    async def page(self, request: Request) -> Response:
        page = await self.digest(lambda: PAGE.read_text(encoding="utf-8"))
        return HTMLResponse(page, headers={"Content-Security-Policy": page_policy(page)})

    async def health(self, request: Request) -> Response:
        failed = self.batcher is not None and self.batcher.failed
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self.check_model({"model": request.path_params["name"]})
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        more = {"head": self.lm.head, "tasks": self.tasks, "writes": self.batcher is not None}
        more["chats"] = self.batcher is not None and chat_template(self.lm.tokenizer) is not None
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "local", **more}

    async def embeddings(self, body: Any, deadline: float) -> Response:
        self.check_model(body)
        given = schemas.check(body, schemas.EMBEDDINGS, ("input",))
        form, texts = given.get("encoding_format", "float"), schemas.inputs(given["input"])
        if not 1 <= len(texts) <= _MOST_INPUTS or not all(map(len, texts)):
            raise UserError(f"input must be a text or a list of 1 to {_MOST_INPUTS} texts that are not empty.")
        if form not in ("float", "base64"):
            raise UserError(f"encoding_format is {form!r}; it must be float or base64.")
        if self.lm.definition.arch.kind == "encoder-decoder":
            raise UserError("This model is an encoder-decoder; embeddings are made of encoders and decoders.")
        named = {name: given.get(name) for name in ("prompt_name", "prompt")}

        def run() -> Response:
            with schemas.about("prompt_name"):
                begins = resolve_prompt(self.lm.embedding or EmbeddingConfig(), texts, **named)
            arch, rows = self.lm.definition.arch, dict[int, np.ndarray]()
            read = (
                self.lm.tokenizer.encode_batch([begins + text for text in texts])
                if isinstance(texts[0], str)
                else texts
            )
            left = sorted(range(len(texts)), key=lambda number: len(read[number]), reverse=True)
            while left:  # the longest first, as many as one pass has memory for
                self._reader.go_on()
                length = min(len(read[left[0]]), arch.max_length or len(read[left[0]]))
                count = min(_TOGETHER, rows_at_once("input", arch, length))
                chosen, left = left[:count], left[count:]
                with schemas.about("input"):
                    found = self.lm.embed([texts[number] for number in chosen], **named).astype("<f4")
                rows |= dict(zip(chosen, found, strict=True))
            self._reader.go_on()
            shown = [
                rows[number].tolist() if form == "float" else base64.b64encode(rows[number].tobytes()).decode()
                for number in range(len(texts))
            ]
            data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(shown)]
            usage = dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(len, read)))
            return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

        return await self.read(run)

    async def predict(self, body: Any, deadline: float) -> Response:
        self.check_model(body)
        given = schemas.check(body, schemas.PREDICT, ("task", "inputs"))
        task, inputs, options = given["task"], given["inputs"], given.get("options", {})
        if task not in self.tasks:
            raise UserError(f"This model has no task {task!r} here. Its tasks: {', '.join(self.tasks) or 'none'}.")
        if isinstance(inputs, list) and not 1 <= len(inputs) <= _MOST_INPUTS:
            raise UserError(f"inputs must be one input, or a list of 1 to {_MOST_INPUTS}.")
        for one in inputs if isinstance(inputs, list) else [inputs]:
            if not isinstance(one, str | dict):
                raise UserError("Each of inputs must be a text or an object.")

        _check_labels(inputs, options)

        def run() -> Response:
            if task not in self._pipelines:
                self._pipelines[task] = found = pipeline(task, self.lm)
                found.split_batch = self._parts
            reader = self._pipelines[task]
            try:
                with schemas.about("options"):
                    PIPELINES[task].check_options(task, options)
                with schemas.about("inputs"):
                    outputs = _plain(reader(inputs, **options))
            except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as problem:
                raise UserError(f"The task {task} does not take these inputs and options: {problem}.") from problem
            return JSONResponse({"model": self.name, "task": task, "outputs": outputs})

        return await self.read(run)

    def _parts(self, rows: int, length: int) -> Iterator[slice]:
        """Rows of a batch that there is memory for at once, each asked for only while somebody waits."""
        count = rows_at_once("inputs", self.lm.definition.arch, length)
        for first in range(0, rows, count):
            self._reader.go_on()
            yield slice(first, first + count)

    async def inspect(self, body: Any, deadline: float) -> Response:
        self.check_model(body)
        given = schemas.check(body, schemas.INSPECT, ("text",))
        if self.lm.definition.arch.encoder is not None:
            raise UserError("Attentions are shown of encoders and decoders, not of pairs of them.")
        if not given["text"]:
            raise UserError("text has no tokens.")

        def run() -> Response:
            with schemas.about("text"):
                inputs = self.lm.inputs([given["text"]])
            seen = int(inputs["attention_mask"].sum())
            if seen > _MOST_SEEN:
                raise UserError(f"text has {seen} tokens; attentions are shown of up to {_MOST_SEEN}.")
            outputs = self.lm(**inputs, output_attentions=True)["attentions"]
            real_L = inputs["attention_mask"][0] > 0
            shown = [np.round(np.asarray(layer)[0][:, real_L][:, :, real_L], 4).tolist() for layer in outputs]
            tokens = self.lm.tokenizer.pieces(inputs["input_ids"][0][real_L])
            return JSONResponse({"tokens": tokens, "attentions": shown})

        return await self.read(run)

    async def completions(self, body: Any, deadline: float) -> Response:
        return await self._write(lambda: schemas.completion(body), body, False, deadline)

    async def chat(self, body: Any, deadline: float) -> Response:
        return await self._write(lambda: schemas.chat(body, self.lm), body, True, deadline)

    async def _write(
        self, make: Callable[[], schemas.CompletionRequest], body: Any, chat: bool, deadline: float
    ) -> Response:
        self.check_model(body)
        if self.writing is None:
            raise UserError(f"This model has the head {self.lm.head!r} and can't write. Use /v1/predict.")
        found = await self.writing.answer(make, chat, deadline)
        return found if isinstance(found, Response) else await self.digest(lambda: JSONResponse(found))


def _check_labels(inputs: Any, options: dict[str, Any]) -> None:
    """Raises a UserError for what makes too much work of a request: each label is read with each input, and so are sentences."""
    several = inputs if isinstance(inputs, list) else [inputs]
    for one in filter(lambda one: isinstance(one, dict), several):
        for name, value in one.items():
            if isinstance(value, list) and len(value) * len(several) > _MOST_INPUTS:
                raise UserError(
                    f"{str(name)[:80]} of inputs has {len(value)} values; a request has at most {_MOST_INPUTS}."
                )
    for name, value in options.items():
        labels = len(value) if isinstance(value, list) else value.count(",") + 1 if isinstance(value, str) else 1
        if labels * len(several) > _MOST_INPUTS and labels > 1:
            raise UserError(
                f"{name[:80]} of options has {labels} values for {len(several)} inputs; together at most {_MOST_INPUTS} are read."
            )
    size = options.get("batch_size")
    if isinstance(size, int) and size > _MOST_INPUTS:
        raise UserError(f"options.batch_size={size}: it is at most {_MOST_INPUTS}.")


async def _disconnected(request: Request) -> None:
    """Returns when the client is gone. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON's."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
